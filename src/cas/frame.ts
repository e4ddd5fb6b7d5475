import { availableParallelism } from "node:os";
import { promisify } from "node:util";
import { constants, zstdCompress, zstdDecompress } from "node:zlib";
import PQueue from "p-queue";

/** The longest content of one blob, in bytes. */
export const MAX_BLOB_SIZE = 8 * 1024 * 1024;

/** `DMBL`: the first bytes of every stored blob. */
const MAGIC = Buffer.from("DMBL", "latin1");
/** Bytes before the body of a stored blob. */
export const HEADER_SIZE = 8;
/** The longest stored form of a blob, in bytes: compression is kept only where it saves. */
export const MAX_FRAME_SIZE = HEADER_SIZE + MAX_BLOB_SIZE;
const VERSION = 1;
const CODEC_RAW = 0;
const CODEC_ZSTD = 1;

/** Of system libraries' sources and documents, as fast as level 1 and 7 percent smaller; level 3 saves 4 percent more at 4/5 of the speed. */
const LEVEL = 2;
/** Content is compressed where that leaves at most this share of it. */
const WORTHWHILE = 0.95;
const SAMPLE_PIECES = 4;
const SAMPLE_PIECE = 16 * 1024;
/** log2 of the largest window that decoding will make room for: that of MAX_BLOB_SIZE. */
const MAX_WINDOW_LOG = 23;

/** Blobs that are compressed at one time: more than there are cores only take memory, some 13 MiB each. */
const compressing = new PQueue({ concurrency: availableParallelism() });

const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);

/**
 * The stored form of a blob's content (at most `MAX_BLOB_SIZE` bytes): a header of 8 bytes (magic
 * `DMBL`, version 1, codec 0 raw or 1 zstd, two zero bytes) and the body, which is `content` itself
 * where it is kept raw. Compression happens on libuv's threads, and only where samples from all over
 * the content say that it pays.
 */
export async function encodeFrame(content: Buffer): Promise<[header: Buffer, body: Buffer]> {
  if (content.length > MAX_BLOB_SIZE) throw new RangeError(`a blob of ${content.length} bytes is too long`);
  if (await samplePays(content)) {
    const body = await compressing.add(() => zstd(content));
    if (pays(body, content)) return [header(CODEC_ZSTD), body];
  }
  return [header(CODEC_RAW), content];
}

/**
 * The content of a stored blob. Throws an `Error` that says what is wrong with a frame that is
 * damaged or hostile; never makes more than `MAX_BLOB_SIZE` bytes of one.
 */
export async function decodeFrame(frame: Buffer): Promise<Buffer> {
  if (frame.length < HEADER_SIZE || !frame.subarray(0, MAGIC.length).equals(MAGIC)) throw new Error("not a blob");
  const [version, codec, reserved1, reserved2] = frame.subarray(MAGIC.length, HEADER_SIZE);
  if (version !== VERSION) throw new Error(`blob format version ${version} is not known`);
  if (reserved1 !== 0 || reserved2 !== 0) throw new Error("reserved header bytes are not zero");
  if (frame.length > MAX_FRAME_SIZE) throw new Error(`it is longer than ${MAX_FRAME_SIZE} bytes`);
  const body = frame.subarray(HEADER_SIZE);
  switch (codec) {
    case CODEC_RAW:
      return body;
    case CODEC_ZSTD:
      return await unzstd(body);
    default:
      throw new Error(`codec ${codec} is not known`);
  }
}

function header(codec: number): Buffer {
  return Buffer.from([...MAGIC, VERSION, codec, 0, 0]);
}

/** A blob may be a group of unlike files, so pieces from all over it are tried rather than one run. */
async function samplePays(content: Buffer): Promise<boolean> {
  if (content.length <= SAMPLE_PIECES * SAMPLE_PIECE * 2) return true;
  const pieces = Array.from({ length: SAMPLE_PIECES }, (_, index) => {
    const start = Math.floor(((index + 0.5) * content.length) / SAMPLE_PIECES - SAMPLE_PIECE / 2);
    return content.subarray(start, start + SAMPLE_PIECE);
  });
  const sample = Buffer.concat(pieces);
  return pays(await zstd(sample), sample);
}

function pays(compressed: Buffer, content: Buffer): boolean {
  return compressed.length <= content.length * WORTHWHILE;
}

function zstd(content: Buffer): Promise<Buffer> {
  return compress(content, {
    params: { [constants.ZSTD_c_compressionLevel]: LEVEL },
    pledgedSrcSize: content.length,
    // Room for the worst case (as ZSTD_COMPRESSBOUND has it), so that one pass on a pool thread does it all.
    chunkSize: content.length + (content.length >> 8) + 1024,
  });
}

async function unzstd(body: Buffer): Promise<Buffer> {
  const size = contentSize(body);
  if (size > MAX_BLOB_SIZE) throw new Error(`its content is longer than ${MAX_BLOB_SIZE} bytes`);
  let content: Buffer;
  try {
    content = await decompress(body, {
      params: { [constants.ZSTD_d_windowLogMax]: MAX_WINDOW_LOG },
      maxOutputLength: MAX_BLOB_SIZE,
      chunkSize: Math.max(size, 64),
    });
  } catch (error) {
    throw new Error(`it does not decompress: ${(error as Error).message}`, { cause: error });
  }
  if (content.length !== size) throw new Error(`it decompresses to ${content.length} bytes instead of ${size}`);
  return content;
}

/** The content size that the header of a zstd frame declares (RFC 8878, section 3.1.1.1). */
function contentSize(body: Buffer): number {
  const descriptor = body.length > 4 ? body.readUInt8(4) : 0;
  const singleSegment = (descriptor & 0x20) !== 0;
  const form = descriptor >> 6;
  const size = form === 0 ? (singleSegment ? 1 : 0) : 1 << form;
  const at = 5 + (singleSegment ? 0 : 1) + [0, 1, 2, 4][descriptor & 3]!;
  if (size === 0 || at + size > body.length) throw new Error("its zstd frame is cut short or does not tell its size");
  if (size === 8) return Number(body.readBigUInt64LE(at));
  return body.readUIntLE(at, size) + (size === 2 ? 256 : 0);
}
