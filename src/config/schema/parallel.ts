import { z } from "zod";
import { bool, int, nullableFloat, works } from "../field.ts";

const size = () => int({ min: 1 }).default(1);

/** What is kept in parts and gathered for use: all weights, and those of experts. */
function weightFields(group: string, before: Parameters<typeof works>[2] = {}) {
  return {
    size: works(size(), `Ranks over which ${group} are split (mode isp).`),
    overlap: works(bool().default(false), "Gather ahead of need, forward and backward."),
    launch_allgather_before: works(
      z.enum(["wqkv", "attn", "wo", "w1"]).default("wo"),
      "The part of a block whose start begins the gathering for the next.",
      before,
    ),
    forward_overlap_per: works(z.enum(["layer", "module"]).default("layer"), "How much is gathered ahead."),
    early_reduce_scatter_release: works(
      bool().default(true),
      "Finish a layer's reductions at the end of the next block's backward pass.",
      { notice: "changes nothing: the sum of a gradient ends where it is made" },
    ),
    layer_fuse_isp_comm: works(bool().default(false), "One collective a layer.", {
      notice: "changes no number and no byte: with overlap the gathers of a layer travel together in any case",
    }),
    memory_pool: works(bool().default(false), "Keep gathered weights in a pool of buffers.", {
      notice: "changes nothing: gathered weights always lie in a pool",
    }),
  };
}

/** How the work is divided over ranks. */
export const parallelSchema = z.strictObject({
  zero1: z.strictObject({
    size: works(
      int({ min: -1 }).default(-1),
      "Ranks over which optimizer state is divided: -1 for all that hold the same weights, 1 for no division.",
    ),
    fsdp: works(
      bool().default(false),
      "Divide parameters too over those ranks, gather a layer's just ahead of need, and sum gradients where they belong.",
    ),
  }),
  tensor: z.strictObject({
    size: works(size(), "Ranks over which each layer is split."),
    mode: works(
      z.enum(["mtp", "msp", "fsp", "isp"]).default("mtp"),
      "How: mtp (Megatron tensor), msp (with split sequences), fsp (flash sequence: gathered again in the backward " +
        "pass), isp (weights apart, by parallel.weight). All are one at size 1.",
    ),
  }),
  pipeline: z.strictObject({
    size: works(size(), "Stages that the layers are divided into."),
    interleaved_overlap: works(
      bool().default(false),
      "Let the messages of one pass travel while the next one computes, in the interleaved schedule.",
    ),
    mode: works(
      z.preprocess((value) => typeof value === "string" ? value.toUpperCase() : value, z.enum(["1F1B", "ZBH1", "ZBV"]))
        .default("1F1B"),
      "Schedule, as InternEvo names it.",
      { only: ["1F1B", "ZBH1"] },
    ),
    schedule: works(
      z.enum(["1f1b", "interleaved", "zbh1", "zbv"]),
      "Order of the micro-batches' work over the stages: 1f1b, interleaved (several chunks of the model a stage), zbh1 " +
        "(zero bubble: gradients of weights are put off to where a stage would be idle). May also be written as " +
        "pipeline.schedule.",
      { derived: "by mode and model.num_chunks", only: ["1f1b", "interleaved", "zbh1"] },
    ),
  }),
  weight: z.strictObject(weightFields("the weights")),
  expert: z.strictObject({
    size: works(int({ min: -1 }).default(-1), "Ranks over which experts are divided; -1 for as many as fit."),
    load_bound: works(
      nullableFloat({ min: 1 }).default(null),
      "Room for tokens on a rank of dropless experts, as a multiple of an even share; more stops the run before the step " +
        "is taken. null for all that can come, at the price of its memory (Troupe's own field).",
    ),
    no_tp: works(
      bool().default(false),
      "Tensor-parallel ranks divide experts and tokens between them, instead of all doing the same experts' work.",
    ),
  }),
  expert_weight: z.strictObject(weightFields("the experts' weights", {
    notice: "changes nothing: experts' weights of the next layer begin with the first of this one's",
  })),
  sequence_parallel: works(bool(), "Whether the sequence is split too; always computed.", {
    derived: "true if tensor.mode is not mtp",
  }),
  sequence_2D: z.strictObject({
    enable: works(bool().default(false), "Split attention both by heads and by context.", {
      notice:
        "changes no number: every rank of a tensor group has all tokens of some heads, as much as of a grid of heads " +
        "and context; a tensor size that does not divide the heads is refused",
    }),
    head_size: works(size(), "Ranks over which heads are split."),
    context_size: works(size(), "Ranks over which the context is split."),
    window_size: works(size(), "Ranks of an inner ring.", { notice: "changes nothing: there is no ring" }),
    device_placement_strategy: z.strictObject({
      head_first: works(bool().default(true), "Neighbouring ranks share heads rather than context."),
      interleaved: works(bool().default(false), "Deal the two kinds out in turn."),
    }),
  }),
}).describe("Division of the work over ranks");
