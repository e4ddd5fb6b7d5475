import { DamagedObjectError } from "./errors.ts";

const TRIES = 3;

/**
 * Reads something that is verified, and reads it again, up to three times in all, where it proves
 * damaged: most damage happens on the way. Throws the last `DamagedObjectError`.
 */
export async function againIfDamaged<T>(read: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof DamagedObjectError) || tries === TRIES) throw error;
    }
  }
}
