/**
 * Tensor modes: each is a rule about layouts, nothing more. `shard.ts` follows it, whatever the model.
 *
 * | mode | parameters | stream between blocks | what was gathered of it |
 * |---|---|---|---|
 * | `mtp` (Shoeybi et al. 2019, Megatron-LM) | split as declared | the same on every rank | – |
 * | `msp` (Korthikanti et al. 2022, with split sequences) | split as declared | split by tokens | kept for the backward pass |
 * | `fsp` (flash sequence parallel) | split as declared | split by tokens | gathered again in the backward pass |
 * | `isp` (Chen et al. 2024, InternEvo) | split by rows over `weight`, gathered for use | split by tokens | – |
 *
 * Fully sharded data parallelism (Zhao et al. 2023, "PyTorch FSDP") goes with the first three: what a rank has by them of a
 * parameter is split by rows over `weight`, ranks with other data, and gathered for use.
 */
import { type Layout, replicated, split } from "./layout.ts";
import type { Axis, Mesh } from "./mesh.ts";

export type TensorModeName = "mtp" | "msp" | "fsp" | "isp";

export interface TensorMode {
  readonly name: TensorModeName;
  /** Where a parameter lives that the family declares so. */
  parameter(declared: Layout): Layout;
  /** Where the stream between blocks lives. */
  readonly stream: Layout;
  /** What is gathered of the stream is gathered again in the backward pass, not kept. */
  readonly gathersAgain: boolean;
  /** Axis over whose ranks gradients are summed of a parameter that is whole on each of them. */
  readonly sumsOver: Axis;
}

/** @param fsdp whether parameters are sharded over data-parallel ranks too */
export function tensorMode(name: TensorModeName, { fsdp = false } = {}): TensorMode {
  const isp = name === "isp";
  return {
    name,
    // Rows of any parameter: they lie one after another, whatever use makes of them. Those of experts are of each expert.
    parameter(declared) {
      if (declared.kind === "replicated") return declared;
      if (declared.axis === "expert") return isp ? split(0, "expert", split(1, "expert_weight")) : declared;
      if (isp) return split(0, "weight");
      return fsdp ? split(declared.dimension, declared.axis, split(0, "weight")) : declared;
    },
    stream: name === "mtp" ? replicated() : split(0, "tensor"),
    gathersAgain: name === "fsp",
    sumsOver: isp ? "weight" : "tensor",
  };
}

/** Whether this rank is the first of those that hold the same part of a parameter, data-parallel ones aside. */
export const isFirstHolder = ({ sumsOver }: TensorMode, layout: Layout, mesh: Pick<Mesh, "index">): boolean =>
  layout.kind === "split" || mesh.index(sumsOver) === 0;
