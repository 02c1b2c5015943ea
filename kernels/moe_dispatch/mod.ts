/**
 * Places for tokens with their experts: a counting sort of all choices by expert. It repeats bit for bit, as every place
 * follows from counts, and none from who comes first.
 *
 * Shapes: T tokens, E experts, k choices a token, R rows. Without a capacity the rows of an expert follow those of the one
 * before, T k in all, and nothing is dropped. With one each expert has as many rows as it says, and what finds no room is
 * dropped.
 */
import { type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import { none } from "../moe_router/reference.ts";
import { bindings, itemText, requireSizes } from "../norm/rows.ts";
import * as reference from "./reference.ts";

export interface DispatchOptions {
  readonly tokens: number;
  readonly experts: number;
  readonly choices: number;
  /** Rows of each expert; absent: as many as chose it. */
  readonly capacity?: number;
  /**
   * Who stands first at an expert: `token`: all choices of the first token, then of the next; `choice`: the first choices
   * of all tokens, then their second ones.
   */
  readonly order: "token" | "choice";
  /** Those of highest priority stay; of equal ones the first. Else the first stay. @default {false} */
  readonly byPriority?: boolean;
}

/** Rows of the experts together. */
const dispatchRows = ({ tokens, experts, choices, capacity }: DispatchOptions): number =>
  capacity === undefined ? tokens * choices : experts * capacity;

/**
 * Room of an expert: `max(ceil(tokens / experts · factor), least)`, as GShard's gates have it.
 *
 * @param factor capacity factor, times the choices a token where each fills room
 *
 * @example
 * ```ts
 * import { capacityOf } from "./mod.ts";
 * console.assert(capacityOf({ tokens: 9, experts: 4, factor: 1.5, least: 1 }) === 4);
 * ```
 */
export function capacityOf(
  { tokens, experts, factor, least }: {
    readonly tokens: number;
    readonly experts: number;
    readonly factor: number;
    readonly least: number;
  },
): number {
  return Math.max(Math.ceil(tokens / experts * factor), least);
}

/**
 * First rows of groups that rows come to from several sources.
 *
 * Operands: table u32 `[sources, experts]` (rows of each source for each expert) → offset u32 `[experts + 1]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { tableOffsets } from "./mod.ts";
 * const offset = new Uint32Array(3);
 * tableOffsets({ sources: 2, experts: 2 }).reference([new Uint32Array([1, 2, 3, 4]), offset]);
 * console.assert(offset.join() === "0,4,10");
 * ```
 */
export function tableOffsets({ sources, experts }: { readonly sources: number; readonly experts: number }): Kernel {
  requireSizes("moe.tableOffsets", { sources, experts });
  const operands: readonly Operand[] = [
    { name: "table", type: "u32", length: sources * experts, access: "read" },
    { name: "offset", type: "u32", length: experts + 1, access: "write" },
  ];
  return {
    name: "moe.tableOffsets",
    operands,
    cost: { flops: 0, bytes: leastBytes(operands) },
    reference: (views) => reference.tableOffsets(experts, views),
    passes() {
      const code = `
${bindings(operands)}
@compute @workgroup_size(1)
fn main() {
  var first = 0u;
  for (var e = 0u; e < ${experts}u; e++) {
    offset[e] = first;
    for (var s = 0u; s < ${sources}u; s++) { first += table[s * ${experts}u + e]; }
  }
  offset[${experts}] = first;
}
`;
      return [{ code, workgroups: [1, 1, 1], operands: [0, 1] }];
    },
  };
}

/** Entries that one invocation looks through. */
const block = 128;

/**
 * Operands: choice u32 `[T, k]` (`0xffffffff`, or any that is no expert, for none), [priority `[T, E]`] → slot u32 `[T, k]` (row of each choice,
 * `0xffffffff` where it was dropped), row u32 `[R]` (the choice `t k + j` in each row, `0xffffffff` where it is empty),
 * count u32 `[E]` (choices of each expert before dropping), offset u32 `[E + 1]` (first row of each expert); then scratch.
 *
 * @throws {RangeError} when a size is not a positive whole number, or priorities are asked for without a capacity
 *
 * @example
 * ```ts
 * import { dispatch } from "./mod.ts";
 * const kernel = dispatch({ tokens: 3, experts: 2, choices: 1, order: "token" });
 * const [slot, row, count, offset] = [3, 3, 2, 3].map((length) => new Uint32Array(length));
 * kernel.reference([new Uint32Array([1, 0, 1]), slot!, row!, count!, offset!]);
 * console.assert(slot!.join() === "1,0,2" && row!.join() === "1,0,2" && offset!.join() === "0,1,3");
 * ```
 */
export function dispatch(options: DispatchOptions): Kernel {
  const { tokens, experts, choices, capacity, order, byPriority = false } = options;
  requireSizes("moe.dispatch", { tokens, experts, choices, ...(capacity === undefined ? {} : { capacity }) });
  if (byPriority && capacity === undefined) {
    throw new RangeError("Cannot make moe.dispatch: priorities decide who is dropped, which takes a capacity");
  }
  const entries = tokens * choices, blocks = Math.ceil(entries / block), rows = dispatchRows(options);
  const operands: readonly Operand[] = [
    { name: "choice", type: "u32", length: entries, access: "read" },
    ...(byPriority ? [{ name: "priority", type: "f32", length: tokens * experts, access: "read" } as const] : []),
    { name: "slot", type: "u32", length: entries, access: "write" },
    { name: "row", type: "u32", length: rows, access: "write" },
    { name: "count", type: "u32", length: experts, access: "write" },
    { name: "offset", type: "u32", length: experts + 1, access: "write" },
    // Choices of each block that are each expert's; from the second pass on, those of the blocks before it.
    { name: "before", type: "u32", length: blocks * experts, access: "scratch" },
    ...(byPriority ? [{ name: "kept", type: "u32", length: entries, access: "scratch" } as const] : []),
  ];
  const place = (name: string) => operands.findIndex((operand) => operand.name === name);
  const pass = (
    access: Readonly<Record<string, "read" | "write">>,
    text: string,
    workgroups: Pass["workgroups"],
  ): Pass => {
    const names = Object.keys(access).filter((name) => place(name) >= 0);
    const bound = names.map((name) => ({ ...operands[place(name)], access: access[name]! }));
    const code = `
${bindings(bound)}
const none = ${none}u;
/** The choice that stands at place p of the order. */
fn entry(p: u32) -> u32 { return ${order === "token" ? "p" : `p % ${tokens}u * ${choices}u + p / ${tokens}u`}; }
${text}
}
`;
    return { code, workgroups, operands: names.map(place) };
  };
  const stays = byPriority ? " && kept[at] != 0u" : "";
  const passes = (): Pass[] => {
    const fill = itemText(Math.max(entries, rows)), perBlock = itemText(blocks * experts), perEntry = itemText(entries);
    const through = (body: string) => `
  let e = i % ${experts}u;
  let first = i / ${experts}u * ${block}u;
  for (var p = first; p < min(first + ${block}u, ${entries}u); p++) {
    let at = entry(p);
    if (choice[at] == e) { ${body} }
  }`;
    /** Turns each block's count of an expert's tokens into that of the blocks before it; more may follow. */
    const countsToPlaces = (then: string) => `
@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
  for (var e = lane; e < ${experts}u; e += 64u) {
    var running = 0u;
    for (var b = 0u; b < ${blocks}u; b++) {
      let found = before[b * ${experts}u + e];
      before[b * ${experts}u + e] = running;
      running += found;
    }
    ${then}
  }`;
    return [
      pass(
        { slot: "write", row: "write" },
        `${fill.open}
  if (i < ${entries}u) { slot[i] = none; }
  if (i < ${rows}u) { row[i] = none; }`,
        fill.workgroups,
      ),
      ...(byPriority
        ? [pass(
          { choice: "read", priority: "read", kept: "write" },
          `${perEntry.open}
  let mine = entry(i);
  let e = choice[mine];
  var better = 0u;
  if (e < ${experts}u) {
    let own = priority[mine / ${choices}u * ${experts}u + e];
    for (var p = 0u; p < ${entries}u; p++) {
      let at = entry(p);
      if (choice[at] != e) { continue; }
      let other = priority[at / ${choices}u * ${experts}u + e];
      better += select(0u, 1u, other > own || (other == own && p < i));
    }
  }
  kept[mine] = select(0u, 1u, better < ${capacity}u);`,
          perEntry.workgroups,
        )]
        : []),
      pass(
        { choice: "read", before: "write" },
        `${perBlock.open}
  var found = 0u;${through("found++;")}
  before[i] = found;`,
        perBlock.workgroups,
      ),
      pass(
        { count: "write", offset: "write", before: "write" },
        `${countsToPlaces("count[e] = running;")}
  storageBarrier();
  workgroupBarrier();
  if (lane != 0u) { return; }
  var first = 0u;
  for (var e = 0u; e < ${experts}u; e++) {
    offset[e] = first;
    first += ${capacity === undefined ? "count[e]" : `${capacity}u`};
  }
  offset[${experts}] = first;`,
        [1, 1, 1],
      ),
      // Where some are passed over, those that stay are counted afresh: their places close up.
      ...(byPriority
        ? [
          pass(
            { choice: "read", kept: "read", before: "write" },
            `${perBlock.open}
  var found = 0u;${through("found += kept[at];")}
  before[i] = found;`,
            perBlock.workgroups,
          ),
          pass(
            { before: "write" },
            countsToPlaces(""),
            [1, 1, 1],
          ),
        ]
        : []),
      pass(
        { choice: "read", slot: "write", row: "write", offset: "read", before: "read", kept: "read" },
        `${perBlock.open}
  var position = before[i];${
          through(`
      if (${capacity === undefined ? "true" : `position < ${capacity}u`}${stays}) {
        slot[at] = offset[e] + position;
        row[offset[e] + position] = at;
      }
      ${byPriority ? "position += kept[at];" : "position++;"}`)
        }`,
        perBlock.workgroups,
      ),
    ];
  };
  return {
    name: "moe.dispatch",
    shape: `${tokens} x ${choices} to ${experts}${capacity === undefined ? "" : ` of ${capacity}`}`,
    operands,
    cost: { flops: 0, bytes: leastBytes(operands) },
    reference: (views) => reference.dispatch(options, views),
    passes,
  };
}
