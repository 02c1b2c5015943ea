/**
 * Boxes: axis-aligned pieces of a global tensor. Every stored entry of a checkpoint is one, which is what lets any layout
 * load any checkpoint: a reader asks for its own box, and gets it assembled from whatever boxes were written.
 */
import { elementCount } from "./safetensors.ts";

export interface Box {
  /** First index on each axis of the global tensor. */
  readonly offset: readonly number[];
  /** Number of indices on each axis. */
  readonly extent: readonly number[];
}

export function wholeBox(shape: readonly number[]): Box {
  return { offset: shape.map(() => 0), extent: [...shape] };
}

/** `[0:4, 8:16]`, as Python writes a slice. */
export function describeBox({ offset, extent }: Box): string {
  return `[${offset.map((begin, axis) => `${begin}:${begin + extent[axis]}`).join(", ")}]`;
}

/** Why a box is not one of a tensor of this shape, or undefined when it is. */
export function boxFault(shape: readonly number[], { offset, extent }: Box): string | undefined {
  const fits = offset.length === shape.length && extent.length === shape.length &&
    shape.every((size, axis) =>
      Number.isSafeInteger(offset[axis]) && Number.isSafeInteger(extent[axis]) &&
      offset[axis] >= 0 && extent[axis] > 0 && offset[axis] + extent[axis] <= size
    );
  return fits ? undefined : `offset [${offset}] and extent [${extent}] are no box inside the shape [${shape}]`;
}

export function intersect(a: Box, b: Box): Box | undefined {
  const offset = a.offset.map((begin, axis) => Math.max(begin, b.offset[axis]));
  const extent = offset.map((begin, axis) =>
    Math.min(a.offset[axis] + a.extent[axis], b.offset[axis] + b.extent[axis]) - begin
  );
  return extent.every((size) => size > 0) ? { offset, extent } : undefined;
}

/**
 * Why boxes do not cover a tensor exactly once, or undefined when they do. Boxes that are inside the shape and do not
 * overlap cover it when their sizes add up.
 */
export function coverFault(shape: readonly number[], boxes: readonly Box[]): string | undefined {
  let covered = 0;
  for (const box of boxes) {
    const fault = boxFault(shape, box);
    if (fault !== undefined) return fault;
    covered += elementCount(box.extent);
  }
  // Sorted by their first row, a box can only overlap those that begin before it ends.
  const sorted = shape.length === 0 ? boxes : [...boxes].sort((a, b) => a.offset[0] - b.offset[0]);
  for (const [i, box] of sorted.entries()) {
    for (let j = i + 1; j < sorted.length; j++) {
      if (shape.length > 0 && sorted[j].offset[0] >= box.offset[0] + box.extent[0]) break;
      if (intersect(box, sorted[j]) !== undefined) {
        return `the boxes ${describeBox(box)} and ${describeBox(sorted[j])} overlap`;
      }
    }
  }
  const total = elementCount(shape);
  if (covered === total) return undefined;
  const some = boxes.length === 0
    ? "none"
    : boxes.slice(0, 4).map(describeBox).join(" ") + (boxes.length > 4 ? " …" : "");
  return `its boxes hold ${covered} of the ${total} elements of shape [${shape}]: ${some}`;
}

/**
 * The boxes, in row-major order, of a flat range of a tensor's elements: what a rank that shards by element count
 * owns. Their contents one after the other are the range.
 *
 * @example
 * ```ts
 * import { boxesOfFlatRange } from "./box.ts";
 * // Elements 1 to 7 of a 3 x 3 tensor: the end of row 0, row 1, the start of row 2.
 * console.assert(boxesOfFlatRange([3, 3], 1, 7).length === 3);
 * ```
 */
export function boxesOfFlatRange(shape: readonly number[], begin: number, end: number): Box[] {
  const total = elementCount(shape);
  if (!(begin >= 0 && begin <= end && end <= total)) {
    throw new RangeError(`Cannot cut elements ${begin} to ${end} of a tensor of ${total}, of shape [${shape}]`);
  }
  if (begin === end) return [];
  if (end - begin === total) return [wholeBox(shape)];
  const [, ...row] = shape;
  const rowElements = elementCount(row);
  const inRow = (index: number, from: number, to: number) =>
    boxesOfFlatRange(row, from, to).map(({ offset, extent }): Box => ({
      offset: [index, ...offset],
      extent: [1, ...extent],
    }));
  const firstWhole = Math.ceil(begin / rowElements);
  const endWhole = Math.floor(end / rowElements);
  if (firstWhole > endWhole) { // all within one row
    return inRow(endWhole, begin - endWhole * rowElements, end - endWhole * rowElements);
  }
  const boxes = begin < firstWhole * rowElements
    ? inRow(firstWhole - 1, begin - (firstWhole - 1) * rowElements, rowElements)
    : [];
  if (endWhole > firstWhole) {
    boxes.push({
      offset: [firstWhole, ...row.map(() => 0)],
      extent: [endWhole - firstWhole, ...row],
    });
  }
  return [...boxes, ...inRow(endWhole, 0, end - endWhole * rowElements)];
}

/** Runs of elements that are contiguous both in a box's row-major data and in another's. */
export interface CopyRuns {
  /** Elements of each run. */
  readonly length: number;
  /** Where each run begins, in elements, in rising order of `source`. */
  readonly source: Float64Array;
  readonly target: Float64Array;
}

/** How `common`, the intersection of two boxes, moves from one's row-major data to the other's. */
export function copyRuns(source: Box, target: Box, common: Box): CopyRuns {
  const rank = common.offset.length;
  let length = 1;
  let inner = rank; // axes from here on make up one run
  while (inner > 0) {
    const axis = inner - 1;
    length *= common.extent[axis];
    inner = axis;
    if (common.extent[axis] !== source.extent[axis] || common.extent[axis] !== target.extent[axis]) break;
  }
  const strides = (extent: readonly number[]) => extent.map((_, axis) => elementCount(extent.slice(axis + 1)));
  const sourceStrides = strides(source.extent);
  const targetStrides = strides(target.extent);
  const outer = common.extent.slice(0, inner);
  const count = elementCount(outer);
  const runs = { length, source: new Float64Array(count), target: new Float64Array(count) };
  const index = outer.map(() => 0);
  for (let run = 0; run < count; run++) {
    for (let axis = 0; axis < rank; axis++) {
      const global = common.offset[axis] + (index[axis] ?? 0);
      runs.source[run] += (global - source.offset[axis]) * sourceStrides[axis];
      runs.target[run] += (global - target.offset[axis]) * targetStrides[axis];
    }
    for (let axis = inner - 1; axis >= 0 && ++index[axis] === outer[axis]; axis--) index[axis] = 0;
  }
  return runs;
}
