/**
 * Names and paths as bytes.
 *
 * A POSIX name is a run of bytes other than `/` and NUL; it need not be UTF-8. Inside Datamon such
 * a name is a `ByteString`: a JavaScript string with one character (U+0000 to U+00FF) per byte.
 * Comparing two with `<` compares their bytes, they work as map keys, and no byte is ever lost.
 */

declare const byteString: unique symbol;

/** A string in which every character stands for one byte. */
export type ByteString = string & { readonly [byteString]: true };

/** The bytes of `text` in UTF-8. */
export function bytesOf(text: string): ByteString {
  return (isAscii(text) ? text : Buffer.from(text, "utf8").toString("latin1")) as ByteString;
}

/** `buffer` as a byte string. */
export function bytesFrom(buffer: Uint8Array): ByteString {
  return Buffer.from(buffer.buffer, buffer.byteOffset, buffer.byteLength).toString("latin1") as ByteString;
}

/** The bytes themselves, in a new buffer. */
export function toBuffer(bytes: ByteString): Buffer {
  return Buffer.from(bytes, "latin1");
}

/** A path in the form that Node's fs calls take without loss: a string where it is ASCII, a buffer otherwise. */
export function toFsPath(bytes: ByteString): string | Buffer {
  return isAscii(bytes) ? bytes : Buffer.from(bytes, "latin1");
}

/**
 * Text to show to a person or to print on a line of its own: UTF-8 decoded, with control
 * characters, backslashes and bytes that are not UTF-8 written as `\n`, `\t`, `\\` or `\xNN`.
 */
export function display(bytes: ByteString): string {
  if (isAscii(bytes)) return escapeControls(bytes);
  const decoded = Buffer.from(bytes, "latin1").toString("utf8");
  if (Buffer.from(decoded, "utf8").toString("latin1") === bytes) return escapeControls(decoded);
  let text = "";
  for (let at = 0; at < bytes.length; ) {
    const length = utf8Length(bytes, at);
    if (length === 0) text += escapeByte(bytes.charCodeAt(at));
    else text += escapeControls(Buffer.from(bytes.slice(at, at + length), "latin1").toString("utf8"));
    at += Math.max(length, 1);
  }
  return text;
}

/** Joins a directory path and a name; the root directory's path is the empty string. */
export function joinPath(directory: ByteString, name: ByteString): ByteString {
  return (directory === "" ? name : `${directory}/${name}`) as ByteString;
}

/** True where `name` may stand in a directory: not empty, `.` or `..`, without `/` and NUL, at most 255 bytes. */
export function isValidName(name: ByteString): boolean {
  return (
    name.length > 0 &&
    name.length <= 255 &&
    name !== "." &&
    name !== ".." &&
    !name.includes("/") &&
    !name.includes("\0")
  );
}

function isAscii(text: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the whole of ASCII is meant
  return /^[\x00-\x7f]*$/.test(text);
}

function escapeControls(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is being escaped
  return text.replace(/[\x00-\x1f\x7f\\]/g, (character) => {
    if (character === "\n") return "\\n";
    if (character === "\t") return "\\t";
    if (character === "\\") return "\\\\";
    return escapeByte(character.charCodeAt(0));
  });
}

function escapeByte(byte: number): string {
  return `\\x${byte.toString(16).padStart(2, "0")}`;
}

/** Length of the valid UTF-8 sequence that starts at `at`, 0 where there is none. */
function utf8Length(bytes: ByteString, at: number): number {
  const lead = bytes.charCodeAt(at);
  const length =
    lead < 0x80 ? 1 : lead >= 0xc2 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (length === 0 || at + length > bytes.length) return 0;
  const run = bytes.slice(at, at + length);
  return Buffer.from(Buffer.from(run, "latin1").toString("utf8"), "utf8").toString("latin1") === run ? length : 0;
}
