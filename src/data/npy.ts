/**
 * NPY files (NumPy's array format, version 1.0 and the wider headers of 2.0 and 3.0), as far as `.bin.meta` needs them:
 * little-endian integer matrices in C order.
 */

export type NpyType = "<i4" | "<i8";

const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];

/** What stands before the data of an NPY file. */
export interface NpyHeader {
  readonly type: NpyType;
  readonly rows: number;
  readonly columns: number;
  /** Where the data begins. */
  readonly dataStart: number;
}

/**
 * Reads the header from the beginning of an NPY file of `fileBytes` bytes. Throws `SyntaxError` that names `path` and what
 * is wrong: no magic, an unknown version, a header that cannot be understood, another type or order, too few or too many
 * bytes.
 */
export function parseNpyHeader(bytes: Uint8Array, path: string, fileBytes: number): NpyHeader {
  const bad = (problem: string) => new SyntaxError(`${path} is not a usable NPY file: ${problem}`);
  if (bytes.length < 10 || magic.some((byte, i) => bytes[i] !== byte)) {
    throw bad(`it does not begin with "\\x93NUMPY" (it has ${fileBytes} bytes)`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = bytes[6];
  if (version < 1 || version > 3) throw bad(`format version ${version} is unknown (1, 2 and 3 are known)`);
  if (version > 1 && bytes.length < 12) throw bad("the header is cut off");
  const headerStart = version === 1 ? 10 : 12;
  const headerLength = version === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  const dataStart = headerStart + headerLength;
  if (dataStart > bytes.length) throw bad(`the header is cut off: ${dataStart} bytes needed, ${bytes.length} there`);
  const header = new TextDecoder().decode(bytes.subarray(headerStart, dataStart));
  const descr = /'descr'\s*:\s*'([^']*)'/.exec(header)?.[1];
  const order = /'fortran_order'\s*:\s*(True|False)/.exec(header)?.[1];
  const shape = /'shape'\s*:\s*\(\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)/.exec(header);
  if (descr === undefined || order === undefined || !shape) {
    throw bad(`the header ${JSON.stringify(header.slice(0, 120).trim())} lacks descr, fortran_order or a shape (N, M)`);
  }
  if (descr !== "<i4" && descr !== "<i8") throw bad(`its type is ${descr}; <i4 or <i8 would work`);
  if (order !== "False") throw bad("it is in Fortran order; C order would work");
  const rows = Number(shape[1]);
  const columns = Number(shape[2]);
  const count = rows * columns;
  const width = descr === "<i4" ? 4 : 8;
  const dataBytes = fileBytes - dataStart;
  if (dataBytes !== count * width) {
    throw bad(`shape (${rows}, ${columns}) of ${descr} needs ${count * width} bytes of data, ${dataBytes} are there`);
  }
  return { type: descr, rows, columns, dataStart };
}

/** The header of an NPY file, version 1.0, data beginning at a multiple of 64 bytes. */
export function npyHeader(type: NpyType, rows: number, columns: number): Uint8Array<ArrayBuffer> {
  const dictionary = `{'descr': '${type}', 'fortran_order': False, 'shape': (${rows}, ${columns}), }`;
  const dataStart = Math.ceil((10 + dictionary.length + 1) / 64) * 64;
  const bytes = new Uint8Array(dataStart);
  bytes.set([...magic, 1, 0]);
  new DataView(bytes.buffer).setUint16(8, dataStart - 10, true);
  new TextEncoder().encodeInto(dictionary.padEnd(dataStart - 11) + "\n", bytes.subarray(10));
  return bytes;
}
