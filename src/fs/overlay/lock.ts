/** The lock that lets one process at a time work on a scratch. */

import { join } from "node:path";
import Database from "better-sqlite3";
import { DatamonError, ioError } from "../../cas/index.ts";

/**
 * Held for as long as it is not released, and by nobody once the process is gone, however it went:
 * it is an exclusive lock of SQLite on a file of its own.
 */
export class ScratchLock {
  readonly #database: Database.Database;

  private constructor(database: Database.Database) {
    this.#database = database;
  }

  /** Takes the lock of the scratch `directory`, or throws "conflict" at once where somebody has it. */
  static take(directory: string): ScratchLock {
    let database: Database.Database | undefined;
    try {
      database = new Database(join(directory, "lock"), { timeout: 0 });
      database.exec("BEGIN EXCLUSIVE");
      return new ScratchLock(database);
    } catch (error) {
      database?.close();
      if ((error as { code?: string }).code?.startsWith("SQLITE_BUSY")) {
        throw new DatamonError("conflict", `the scratch ${directory} is in use by a mount or a commit`, {
          hint: "Unmount it first; `datamon mount list` shows what is mounted.",
        });
      }
      throw ioError(`lock the scratch ${directory}`, error);
    }
  }

  release(): void {
    this.#database.close();
  }
}
