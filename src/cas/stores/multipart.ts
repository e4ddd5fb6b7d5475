import { randomUUID } from "node:crypto";
import type { ObjectBody } from "../store.ts";
import { piecesOf } from "./body.ts";
import type { Answer, HttpRequest } from "./http.ts";

/** What is to be uploaded, under which name. */
export interface UploadTask {
  readonly name: string;
  readonly body: ObjectBody;
  /** Bytes. */
  readonly size: number;
  /** CRC-32C as Google Cloud Storage writes it, which refuses bytes that do not have it. */
  readonly checksum: string;
}

/** Sends one request of an upload. */
export type SendRequest = (request: HttpRequest) => Promise<Answer>;

/** An upload to Google Cloud Storage in one request: the metadata and the bytes. */
export class MultipartUpload {
  readonly checksum: string;
  readonly #task: UploadTask;

  constructor(task: UploadTask) {
    this.#task = task;
    this.checksum = task.checksum;
  }

  /** Uploads everything; the answer is the store's, whatever it is. */
  async run(url: string, send: SendRequest): Promise<Answer> {
    const { name, body, size, checksum } = this.#task;
    const boundary = randomUUID();
    const part = (type: string) => `--${boundary}\r\ncontent-type: ${type}\r\n\r\n`;
    const metadata = JSON.stringify({ name, crc32c: checksum });
    const head = Buffer.from(`${part("application/json")}${metadata}\r\n${part("application/octet-stream")}`);
    const tail = Buffer.from(`\r\n--${boundary}--\r\n`);
    return await send({
      method: "POST",
      url: new URL(`${url}&uploadType=multipart`),
      headers: {
        "content-type": `multipart/related; boundary=${boundary}`,
        "content-length": head.length + size + tail.length,
      },
      body: around(head, body, tail),
    });
  }
}

async function* around(head: Buffer, body: ObjectBody, tail: Buffer): AsyncGenerator<Uint8Array> {
  yield head;
  yield* piecesOf(body);
  yield tail;
}
