import { assert, assertEquals } from "@std/assert";
import { crc32c } from "./crc32c.ts";
import { TensorBoardWriter } from "./tensorboard.ts";

// A reader of its own: frames, checksums bit by bit, and protocol buffer fields by number.

function slowCrc32c(bytes: Uint8Array): number {
  let crc = ~0;
  for (const byte of bytes) {
    for (let bit = 0; bit < 8; bit++) {
      const odd = ((crc ^ (byte >> bit)) & 1) !== 0;
      crc = (crc >>> 1) ^ (odd ? 0x82f63b78 : 0);
    }
  }
  return ~crc >>> 0;
}

function unmask(masked: number): number {
  const rotated = (masked - 0xa282ead8) >>> 0;
  return ((rotated << 15) | (rotated >>> 17)) >>> 0;
}

function records(path: string): Uint8Array[] {
  const bytes = Deno.readFileSync(path);
  const view = new DataView(bytes.buffer);
  const out: Uint8Array[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = Number(view.getBigUint64(at, true));
    assertEquals(unmask(view.getUint32(at + 8, true)), slowCrc32c(bytes.subarray(at, at + 8)), "checksum of a length");
    const content = bytes.subarray(at + 12, at + 12 + length);
    assertEquals(unmask(view.getUint32(at + 12 + length, true)), slowCrc32c(content), "checksum of a record");
    out.push(content);
    at += 16 + length;
  }
  return out;
}

type Fields = Map<number, (number | Uint8Array)[]>;

function fields(bytes: Uint8Array): Fields {
  const out: Fields = new Map();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  const varint = () => {
    let value = 0, scale = 1;
    for (;; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    let value: number | Uint8Array;
    switch (key & 7) {
      case 0:
        value = varint();
        break;
      case 1:
        value = view.getFloat64(at, true);
        at += 8;
        break;
      case 2: {
        const length = varint();
        value = bytes.subarray(at, at + length);
        at += length;
        break;
      }
      case 5:
        value = view.getFloat32(at, true);
        at += 4;
        break;
      default:
        throw new Error(`wire type ${key & 7}`);
    }
    out.set(key >> 3, [...out.get(key >> 3) ?? [], value]);
  }
  return out;
}

const message = (of: Fields, field: number) => fields(of.get(field)![0] as Uint8Array);
const string = (of: Fields, field: number) => new TextDecoder().decode(of.get(field)![0] as Uint8Array);

Deno.test("crc32c() gives the check value of the standard and of RFC 3720's vectors", () => {
  assertEquals(crc32c(new TextEncoder().encode("123456789")), 0xe3069283);
  assertEquals(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assertEquals(crc32c(new Uint8Array(32).fill(255)), 0x62a8ab43);
});

Deno.test("TensorBoardWriter writes events that another reader understands", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const board = new TensorBoardWriter({
      folder: `${folder}/dp=0`,
      host: "h",
      purgeStep: 300,
      now: () => 1_700_000_000_500,
    });
    board.addText("config", "größe | 1", 0);
    board.addScalar("loss", 2.5, 300);
    board.addScalars("grad_norm", { "0_default": 1.5, "1_fp32": -0.25 }, 70_000);
    board[Symbol.dispose]();
    assert(board.path.includes("/events.out.tfevents.1700000000.h."));
    const events = records(board.path).map(fields);
    assertEquals(events.map((event) => event.get(1)![0]), Array(events.length).fill(1_700_000_000.5));
    assertEquals(events.map((event) => event.get(2)![0]), [0, 300, 0, 300, 70_000, 70_000]);
    assertEquals(string(events[0], 3), "brain.Event:2");
    assertEquals(message(events[1], 7).get(1), [1]);
    const values = events.slice(2).map((event) => message(event, 5))
      .map((summary) => message(summary, 1));
    assertEquals(values.map((value) => string(value, 1)), [
      "config",
      "loss",
      "grad_norm/0_default",
      "grad_norm/1_fp32",
    ]);
    assertEquals(values.slice(1).map((value) => value.get(2)![0]), [2.5, 1.5, -0.25]);
    assertEquals(string(message(message(values[0], 9), 1), 1), "text");
    const tensor = message(values[0], 8);
    assertEquals([tensor.get(1)![0], string(tensor, 8)], [7, "größe | 1"]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("TensorBoardWriter holds back the stated number of steps, and nothing at the end of the run", () => {
  const folder = Deno.makeTempDirSync();
  try {
    using board = new TensorBoardWriter({ folder, queueMaxLength: 2, totalSteps: 4 });
    const scalars = () => records(board.path).length - 1; // without the version
    const seen = [1, 2, 3, 4, 5].map((step) => {
      board.addScalar("loss", step, step);
      return scalars();
    });
    assertEquals(seen, [0, 0, 2, 4, 5]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
