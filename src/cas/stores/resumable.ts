import { piecesOf } from "./body.ts";
import type { Answer } from "./http.ts";
import type { SendRequest, UploadTask } from "./multipart.ts";

/** Bodies of this many bytes or more are uploaded piece by piece, so that a failure does not cost all that was sent. */
export const RESUMABLE_SIZE = 32 * 1024 * 1024;
/** A multiple of 256 KiB, as the protocol wants it. */
const PIECE = 16 * 1024 * 1024;

/**
 * An upload to Google Cloud Storage by the resumable protocol. Where a request fails, running it
 * again asks how far the store got and goes on from there.
 */
export class ResumableUpload {
  readonly checksum: string;
  readonly #task: UploadTask;
  #session: URL | undefined;

  constructor(task: UploadTask) {
    this.#task = task;
    this.checksum = task.checksum;
  }

  /** Uploads what is missing; the answer is the store's to the last request, whatever it is. */
  async run(url: string, send: SendRequest): Promise<Answer> {
    const { size, name, body, checksum } = this.#task;
    let answer: Answer;
    if (this.#session === undefined) {
      const metadata = Buffer.from(JSON.stringify({ name, crc32c: checksum }));
      answer = await send({
        method: "POST",
        url: new URL(`${url}&uploadType=resumable`),
        headers: {
          "content-type": "application/json",
          "content-length": metadata.length,
          "x-upload-content-length": size,
        },
        body: [metadata],
      });
      if (answer.status !== 200 || answer.headers.location === undefined) return answer;
      this.#session = new URL(answer.headers.location);
      answer = { ...answer, status: 308, headers: {} };
    } else {
      answer = await this.#put(send, `bytes */${size}`, 0, []);
    }
    while (answer.status === 308) {
      const start = receivedOf(answer);
      const end = Math.min(start + PIECE, size);
      answer = await this.#put(send, `bytes ${start}-${end - 1}/${size}`, end - start, piecesOf(body, start, end));
    }
    // A session that ended without an object is of no more use.
    if (answer.status >= 400 && answer.status < 500) this.#session = undefined;
    return answer;
  }

  async #put(
    send: SendRequest,
    range: string,
    length: number,
    body: Parameters<SendRequest>[0]["body"],
  ): Promise<Answer> {
    return await send({
      method: "PUT",
      url: this.#session!,
      headers: { "content-length": length, "content-range": range },
      ...(body === undefined ? {} : { body }),
    });
  }
}

/** How many bytes from the start the store has kept. */
function receivedOf(answer: Answer): number {
  const last = /^bytes=0-(\d+)$/.exec(answer.headers.range ?? "")?.[1];
  return last === undefined ? 0 : Number(last) + 1;
}
