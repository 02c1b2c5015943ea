/**
 * Tensor modes: each is a rule about layouts, nothing more. `shard.ts` follows it, whatever the model.
 *
 * | mode | parameters | stream between blocks | what was gathered of it |
 * |---|---|---|---|
 * | `mtp` (Shoeybi et al. 2019, Megatron-LM) | split as declared | the same on every rank | – |
 * | `msp` (Korthikanti et al. 2022, with split sequences) | split as declared | split by tokens | kept for the backward pass |
 * | `fsp` (flash sequence parallel) | split as declared | split by tokens | gathered again in the backward pass |
 * | `isp` (Chen et al. 2024, InternEvo) | split by rows over `weight`, gathered for use | split by tokens | – |
 */
import { type Layout, replicated, split } from "./layout.ts";
import type { Axis, Mesh } from "./mesh.ts";

export type TensorModeName = "mtp" | "msp" | "fsp" | "isp";

/**
 * The mode that a record asks for. Fully sharded data parallelism (`zero1.fsdp`; Zhao et al. 2023, "PyTorch FSDP") is `isp`
 * on whole sequences, with the ranks that divide optimizer state as the weight group.
 */
export const tensorModeOf = (
  { parallel: { tensor, zero1 } }: {
    readonly parallel: {
      readonly tensor: { readonly mode: TensorModeName };
      readonly zero1: { readonly fsdp: boolean };
    };
  },
): TensorModeName => zero1.fsdp ? "isp" : tensor.mode;

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

export function tensorMode(name: TensorModeName): TensorMode {
  const isp = name === "isp";
  return {
    name,
    // Rows of any parameter: they lie one after another, whatever use makes of them.
    parameter: (declared) =>
      isp && declared.kind === "split" && declared.axis !== "expert" ? split(0, "weight") : declared,
    stream: name === "mtp" ? replicated() : split(0, "tensor"),
    gathersAgain: name === "fsp",
    sumsOver: isp ? "weight" : "tensor",
  };
}

/** Whether this rank is the first of those that hold the same part of a parameter, data-parallel ones aside. */
export const isFirstHolder = ({ sumsOver }: TensorMode, layout: Layout, mesh: Pick<Mesh, "index">): boolean => {
  if (layout.kind === "replicated") return mesh.index(sumsOver) === 0;
  // Experts are whole on the ranks of a tensor group, unless these are expert ranks themselves.
  return layout.axis !== "expert" || mesh.index("expert_tensor") === 0;
};
