/**
 * Frames: what goes over a connection between two ranks. A header of 40 bytes says what the body is and to which
 * collective it belongs, so that ranks that disagree find out from the first frame.
 *
 * ```text
 *  0 u16 magic   2 u8 kind   3 u8 operator   4 u32 group   8 u32 sequence   12 u32 step
 * 16 u8 type    17 u8 reduction   18 u16 zero   20 u32 bytes of the body   24 f64 count   32 f64 bytes of the message
 * ```
 */

export const headerBytes = 40;
/** The largest body: what a control frame may have to wait for. */
export const maxBodyBytes = 1 << 20;
const magic = 0x5054;

/**
 * `data`: a piece of a message. `ready`: the receiver has a place for a message too large to be kept for it. `offer`: the
 * sender of such a message waits for that. `control`: JSON.
 */
const frameKinds = ["data", "ready", "offer", "control"] as const;
export type FrameKind = typeof frameKinds[number];

const operators = [
  "none",
  "all-reduce",
  "reduce-scatter",
  "all-gather",
  "broadcast",
  "reduce",
  "all-to-all",
  "barrier",
  "send",
  "gather",
] as const;
export type Operator = typeof operators[number];

const elementTypes = ["f32", "f16", "bf16", "bytes"] as const;
export type ElementType = typeof elementTypes[number];

const reductions = ["none", "sum", "max"] as const;
export type Reduction = typeof reductions[number];

/** What ranks must agree on before they exchange a byte. */
export interface Tag {
  readonly operator: Operator;
  /** Names the group, or the pair of a `send`. */
  readonly group: number;
  /** Collectives on this group before this one. */
  readonly sequence: number;
  /** Which message of the collective it is, and above the lowest 16 bits the root's place in the group. */
  readonly step: number;
  readonly type: ElementType;
  readonly reduction: Reduction;
  /** Elements of the whole collective. */
  readonly count: number;
}

export interface Frame {
  readonly kind: FrameKind;
  readonly tag: Tag;
  /** Bytes of the body that follows. */
  readonly bodyBytes: number;
  /** Bytes of the whole message, of which the body is the next piece. */
  readonly messageBytes: number;
}

export const noTag: Tag = {
  operator: "none",
  group: 0,
  sequence: 0,
  step: 0,
  type: "bytes",
  reduction: "none",
  count: 0,
};

export function encodeFrame({ kind, tag, bodyBytes, messageBytes }: Frame, into: Uint8Array): void {
  const view = new DataView(into.buffer, into.byteOffset, headerBytes);
  view.setUint16(0, magic, true);
  view.setUint8(2, frameKinds.indexOf(kind));
  view.setUint8(3, operators.indexOf(tag.operator));
  view.setUint32(4, tag.group, true);
  view.setUint32(8, tag.sequence, true);
  view.setUint32(12, tag.step, true);
  view.setUint8(16, elementTypes.indexOf(tag.type));
  view.setUint8(17, reductions.indexOf(tag.reduction));
  view.setUint16(18, 0, true);
  view.setUint32(20, bodyBytes, true);
  view.setFloat64(24, tag.count, true);
  view.setFloat64(32, messageBytes, true);
}

/** @throws {RangeError} when the bytes are no header of a frame, or the body would be larger than allowed */
export function decodeFrame(from: Uint8Array): Frame {
  if (from.length < headerBytes) {
    throw new RangeError(`A frame's header has ${headerBytes} bytes, found ${from.length}`);
  }
  const view = new DataView(from.buffer, from.byteOffset, headerBytes);
  const found = view.getUint16(0, true);
  if (found !== magic) {
    throw new RangeError(`A frame begins with 0x${magic.toString(16)}, found 0x${found.toString(16)}`);
  }
  const name = <T>(names: readonly T[], at: number, what: string): T => {
    const code = view.getUint8(at);
    if (code >= names.length) throw new RangeError(`A frame's ${what} is below ${names.length}, found ${code}`);
    return names[code]!;
  };
  const size = (at: number, what: string): number => {
    const value = view.getFloat64(at, true);
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new RangeError(`A frame's ${what} is a whole number, 0 or above, found ${value}`);
    }
    return value;
  };
  const bodyBytes = view.getUint32(20, true), messageBytes = size(32, "message size");
  if (bodyBytes > maxBodyBytes) {
    throw new RangeError(`A frame's body has ${maxBodyBytes} bytes at most, found ${bodyBytes}`);
  }
  if (bodyBytes > messageBytes) {
    throw new RangeError(`A frame's body is part of its message, found ${bodyBytes} of ${messageBytes} bytes`);
  }
  const kind = name(frameKinds, 2, "kind");
  if ((kind === "ready" || kind === "offer") && bodyBytes > 0) {
    throw new RangeError(`A frame "${kind}" has no body, found ${bodyBytes} bytes`);
  }
  return {
    kind,
    tag: {
      operator: name(operators, 3, "operator"),
      group: view.getUint32(4, true),
      sequence: view.getUint32(8, true),
      step: view.getUint32(12, true),
      type: name(elementTypes, 16, "type"),
      reduction: name(reductions, 17, "reduction"),
      count: size(24, "count"),
    },
    bodyBytes,
    messageBytes,
  };
}

export const sameTag = (a: Tag, b: Tag): boolean =>
  a.operator === b.operator && a.group === b.group && a.sequence === b.sequence && a.step === b.step &&
  a.type === b.type && a.reduction === b.reduction && a.count === b.count;

/** For people: `all-reduce #12 (sum of 1024 f32)`. */
export function describeTag({ operator, sequence, step, reduction, count, type }: Tag): string {
  const what = `${reduction === "none" ? "" : `${reduction} of `}${count} ${type}`, root = step >>> 16;
  return `${operator} #${sequence} (${what}${root > 0 ? `, root ${root}` : ""})`;
}
