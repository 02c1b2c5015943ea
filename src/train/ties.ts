/**
 * Ties of two experts in a replay (`verify.ts`): a token's choice between them is what `float32` happened to round to. The
 * reference has rounded otherwise, and where it chose the other one, its training goes another way from that step on.
 */
import type { Kernel } from "../../kernels/kernel.ts";
import type { Backend } from "../backend/backend.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import type { World } from "../parallel/world.ts";
import type { Model } from "./model.ts";
import { chooseName, type NarrowChoice, RouterWitness } from "./narrow_choices.ts";
import { stageSchedule } from "./stage.ts";

/** Places are counted from 0, but steps. */
export interface Tie {
  /** As it is printed: from 1. */
  readonly step: number;
  /** As in the names of its parameters. */
  readonly layer: number;
  /** Of the step, and a token of it. */
  readonly microBatch: number;
  readonly token: number;
  /** The last expert that was chosen, and the first that was not. */
  readonly experts: readonly [chosen: number, other: number];
  /** The score of the chosen one, how far the other's is below it, and the size of the token's largest. */
  readonly score: number;
  readonly apart: number;
  readonly size: number;
  /** Largest error of a loss in the steps before, and from it on. */
  readonly lossErrors: readonly [before: number, from: number];
}

/**
 * How near two scores must be, in parts of the largest, for their order to be rounding: trainings of `hf/mixtral` in
 * `float32`, on several layouts, have scores up to 3 of a million apart from those in double after a dozen steps.
 */
const tieShare = 1e-5;

/** The choices that the routers of a replay make. */
export class Choices implements Disposable {
  readonly #witness: RouterWitness;
  readonly #sizes: { readonly experts: number; readonly choices: number };
  readonly #tokens: number;
  readonly #broken: Tie | undefined;
  /** The narrowest choice of each step on this rank, its places those of the whole step. */
  readonly #narrow: (NarrowChoice | undefined)[] = [];
  #layers: ReadonlyMap<Kernel, number> | undefined;
  #offsets = { first: 0, row: 0, count: 0 };

  private constructor({ model, data }: ResolvedConfig, backend: Backend, broken: Tie | undefined) {
    this.#witness = new RouterWitness(backend, { chooses: broken !== undefined });
    this.#sizes = { experts: model.num_experts, choices: model.top_k };
    this.#tokens = data.packed_length;
    this.#broken = broken;
  }

  /** @returns nothing where there is nothing to choose, or where what routers see is rounded to a half type */
  static watch(config: ResolvedConfig, backend: Backend, broken?: Tie): Choices | undefined {
    const { dtype, num_experts, top_k } = config.model;
    return dtype === "float32" && top_k < num_experts ? new Choices(config, backend, broken) : undefined;
  }

  /** What the model is to be made on. */
  get backend(): Backend {
    return this.#witness.backend;
  }

  /** @param place the step from 0, and this rank's micro-batches: the first one's number, and how many */
  async begin(
    model: Model,
    { step, first, count }: { readonly step: number; readonly first: number; readonly count: number },
  ): Promise<void> {
    this.#layers ??= layersOfRouters(model);
    await this.#witness.take(this.#layers, { ...this.#sizes, microBatches: 0 }); // those of an evaluation
    const kernels = [...this.#layers.keys()], rows = (kernels[0]?.operands[0].length ?? 0) / this.#sizes.experts;
    const row = rows < this.#tokens ? model.world.mesh.index("tensor") * rows : 0;
    this.#offsets = { first, row, count };
    if (this.#broken?.step !== step + 1) return;
    const { layer, microBatch, token, experts: [chosen, other], ...scores } = this.#broken;
    const kernel = kernels.find((each) => this.#layers!.get(each) === layer), own = token - row;
    if (!kernel || own < 0 || own >= rows) return; // another rank's
    this.#witness.chooseOther(kernel, {
      ...scores,
      layer,
      chosen,
      other,
      rows,
      row: own,
      microBatch: microBatch - first,
    });
  }

  /** The step is over. */
  async end(): Promise<void> {
    const { first, row, count } = this.#offsets;
    const found = await this.#witness.take(this.#layers!, { ...this.#sizes, microBatches: count });
    this.#narrow.push(found && { ...found, microBatch: first + found.microBatch, row: row + found.row });
  }

  /**
   * The narrowest tie on any rank that comes no later than the first loss beyond the limit; nothing where none is.
   *
   * @param lossErrors of each step on this rank
   */
  async tie({ group }: World, lossErrors: readonly number[], limit: number): Promise<Tie | undefined> {
    const global = group("global");
    const errors = Float32Array.from(lossErrors, (error) => Number.isNaN(error) ? Infinity : error);
    await global.allReduce(errors, "max");
    const failed = errors.findIndex((error) => error > limit), all = await narrowestOfAll(this.#narrow, global);
    if (failed < 0) return undefined;
    const [found] = all.slice(0, failed + 1)
      .flatMap((choice, step) => choice && choice.apart <= tieShare * choice.size ? [{ ...choice, step }] : [])
      .sort((a, b) => a.apart / a.size - b.apart / b.size);
    if (!found) return undefined;
    const { step, layer, microBatch, row, chosen, other, score, apart, size } = found;
    return {
      step: step + 1,
      layer,
      microBatch,
      token: row,
      experts: [chosen, other],
      score,
      apart,
      size,
      lossErrors: [Math.max(0, ...errors.subarray(0, step)), Math.max(...errors.subarray(step))],
    };
  }

  /** Frees what was kept, once the model is not run any more. */
  [Symbol.dispose](): void {
    this.#witness[Symbol.dispose]();
  }
}

/** Layers of the routers that run in forward passes. Those that run again in a backward pass see the same. */
function layersOfRouters({ config, world, program: { plan } }: Model): Map<Kernel, number> {
  const { own } = stageSchedule(config, world.mesh);
  return new Map(own.flatMap(({ first }, chunk) =>
    plan.segments[`forward ${chunk}`].instructions
      .flatMap((each) => each.kind === "dispatch" && each.kernel.name === chooseName ? [each.kernel] : [])
      .map((kernel, index) => [kernel, first + index] as const)
  ));
}

/** Of each step, the narrowest choice on any rank. */
async function narrowestOfAll(
  own: readonly (NarrowChoice | undefined)[],
  global: ReturnType<World["group"]>,
): Promise<(NarrowChoice | undefined)[]> {
  const keys = ["apart", "score", "size", "layer", "microBatch", "row", "rows", "chosen", "other"] as const;
  const least = Float32Array.from(own, (choice) => -(choice?.apart ?? Infinity));
  await global.allReduce(least, "max");
  // Of ranks with the same, the last one tells.
  const tells = Float32Array.from(own, (choice, step) => choice && -choice.apart === least[step] ? global.index : -1);
  await global.allReduce(tells, "max");
  const told = new Float32Array(keys.length * own.length).fill(-Infinity);
  own.forEach((choice, step) => {
    if (tells[step] === global.index) told.set(keys.map((key) => choice![key]), keys.length * step);
  });
  await global.allReduce(told, "max");
  return own.map((_, step) => {
    if (tells[step]! < 0) return undefined;
    const of = (key: typeof keys[number]) => told[keys.length * step + keys.indexOf(key)]!;
    return Object.fromEntries(keys.map((key) => [key, of(key)])) as unknown as NarrowChoice;
  });
}
