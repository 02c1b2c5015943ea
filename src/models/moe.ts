/** What the families with experts share: settings from the `model` section, layouts, and pieces of weight formats. */
import { droplessSettings, gshardSettings, megaBlockSettings } from "../config/schema/moe_layer.ts";
import type { Initialization } from "../graph/graph.ts";
import type { MoeSettings } from "../nn/moe.ts";
import type { DecoderSettings } from "../nn/settings.ts";
import { replicated, type ShardingPlan, split } from "../parallel/layout.ts";
import { denseSharding, denseSizes, rowRange, whole } from "./dense.ts";
import type { ModelSection, TensorMapping } from "./family.ts";

type Shared = "sigmoid" | "softmax";

/** A decoder whose feed-forward layers are mixtures of experts, where the section has more than one expert. */
export function withExperts(
  settings: DecoderSettings,
  section: ModelSection,
  { joins, routerInitialization }: { joins: Shared; routerInitialization: Initialization },
): DecoderSettings {
  const { num_experts: experts, top_k: choices, num_shared_experts: shared, moe_type, moe_layer_kwargs } = section;
  if (experts === 1) return settings;
  const { ffnSize } = settings;
  const moe = {
    experts,
    choices,
    ffnSize,
    routerInitialization,
    ...(shared > 0 ? { shared: { ffnSize: shared * ffnSize, joins } } : {}),
    ...kindOf(moe_type)(choices, moe_layer_kwargs),
  };
  return { ...settings, moe };
}

type Kind = Pick<MoeSettings, "capacity" | "order" | "normalize" | "counted" | "noise">;

const kindOf = (type: string): (choices: number, kwargs: unknown) => Kind => {
  switch (type) {
    case "GShard":
      return gshard;
    case "Dropless":
      return dropless;
    case "MegaBlock":
      return megaBlock;
    case "MegaBlock-Dropless":
      return megaBlocks;
    default:
      throw new TypeError(`unknown kind of mixture ${type}`);
  }
};

/** Gale et al. 2023, "MegaBlocks": probabilities as they are, all choices count as load; with a capacity the first stay. */
const megaBlocks = (choices: number): Kind => ({ order: "token", normalize: "none", counted: choices });

function megaBlock(choices: number, kwargs: unknown): Kind {
  const { capacity_factor, drop_tokens } = megaBlockSettings(kwargs), factor = capacity_factor * choices;
  if (!drop_tokens) return megaBlocks(choices);
  return { ...megaBlocks(choices), capacity: { factor, evaluationFactor: factor, least: 1, keeps: "first" } };
}

/**
 * GShard's gates. Without the fused one, a single choice is weighed by its probability as it is, places go by lot
 * (`use_rts`), and a second choice is drawn.
 */
function gshard(choices: number, kwargs: unknown): Kind {
  const settings = gshardSettings(kwargs), fused = settings.use_fused_gating || choices > 2;
  const noise: Pick<MoeSettings, "noise"> = settings.noisy_gate_policy === "Jitter"
    ? { noise: "jitter" }
    : settings.noisy_gate_policy === "RSample"
    ? { noise: 0 }
    : !fused && choices === 2
    ? { noise: 1 }
    : {};
  return {
    order: "choice",
    normalize: !fused && choices === 1 ? "none" : "kept",
    counted: 1,
    ...noise,
    ...(settings.drop_tokens
      ? {
        capacity: {
          factor: settings.capacity_factor * choices,
          evaluationFactor: settings.eval_capacity_factor * choices,
          least: settings.min_capacity,
          keeps: !fused && choices === 1 && settings.use_rts ? "random" : "first",
        },
      }
      : {}),
  };
}

function dropless(choices: number, kwargs: unknown): Kind {
  const { capacity_factor, drop_policy, norm_topk_prob, noisy_gate_policy } = droplessSettings(kwargs);
  return {
    order: "token",
    normalize: norm_topk_prob ? "all" : "none",
    counted: choices,
    ...(noisy_gate_policy === "Jitter" ? { noise: "jitter" } : noisy_gate_policy === "RSample" ? { noise: 0 } : {}),
    ...(capacity_factor === null ? {} : {
      capacity: {
        factor: capacity_factor * choices,
        evaluationFactor: capacity_factor * choices,
        least: 1,
        keeps: drop_policy === "probs" ? "probability" : "first",
      },
    }),
  };
}

/** Experts over the expert axis, each by its width over a tensor group; the router is everywhere. */
export const moeSharding: ShardingPlan = {
  ...denseSharding,
  "layers.*.ffn.router.weight": replicated(),
  "layers.*.ffn.experts.gate.weight": split(0, "expert", split(1, "expert_tensor")),
  "layers.*.ffn.experts.up.weight": split(0, "expert", split(1, "expert_tensor")),
  "layers.*.ffn.experts.down.weight": split(0, "expert", split(2, "expert_tensor")),
  "layers.*.ffn.shared_gate.*": replicated(),
  "layers.*.ffn.shared.gate.weight": split(0, "tensor"),
  "layers.*.ffn.shared.up.weight": split(0, "tensor"),
  "layers.*.ffn.shared.down.weight": split(1, "tensor"),
};

/** Sizes that weight formats of mixtures speak of. */
export function moeSizes(section: ModelSection) {
  const { hidden, ffn } = denseSizes(section);
  return { hidden, ffn, experts: section.num_experts, shared: section.num_shared_experts * ffn };
}

/** A tensor of the file that is one expert's part of a stacked parameter. */
const oneExpert = (
  tensor: string,
  parameter: string,
  { expert, experts, shape }: { expert: number; experts: number; shape: readonly [number, number] },
): TensorMapping => ({ tensor, shape, parts: [{ parameter, slice: { index: expert, of: experts } }] });

/** Gate and up matrices of all experts as one tensor, the gate's rows of an expert before its up's; and all down ones. */
export function stackedTensors(
  section: ModelSection,
  { prefix, canonical }: { prefix: string; canonical: string },
): TensorMapping[] {
  const { hidden, ffn, experts } = moeSizes(section), shape = [experts, ffn, hidden];
  const rowsOf = (half: number) =>
    Array.from({ length: experts }, (_, expert) => rowRange((2 * expert + half) * ffn, ffn)).flat();
  const parameter = (part: string) => `${canonical}.ffn.experts.${part}.weight`;
  return [
    {
      tensor: `${prefix}.gate_up_proj`,
      shape: [experts, 2 * ffn, hidden],
      width: hidden,
      parts: [
        { parameter: parameter("gate"), rows: rowsOf(0), shape },
        { parameter: parameter("up"), rows: rowsOf(1), shape },
      ],
    },
    whole(`${prefix}.down_proj`, parameter("down"), [experts, hidden, ffn]),
  ];
}

/** @throws {RangeError} naming the first setting that a `config.json` cannot tell of: values seen, and needed */
export function refuseSettings(whose: string, settings: Readonly<Record<string, readonly [unknown, unknown]>>): void {
  for (const [name, [seen, needed]] of Object.entries(settings)) {
    if (seen === needed) continue;
    throw new RangeError(
      `Cannot write config.json: model.${name} is ${JSON.stringify(seen)}, and ${whose} file can only tell of ` +
        JSON.stringify(needed),
    );
  }
}

/** Names of one layer's mixture, where each expert's matrices are tensors of their own. */
export interface ExpertNames {
  readonly router: string;
  /** `{e}` is the expert. */
  readonly gate: string;
  readonly up: string;
  readonly down: string;
  readonly shared?: { readonly gate: string; readonly up: string; readonly down: string; readonly join: string };
}

/** Tensors of one layer's mixture: `prefix` of the file's names, `canonical` of ours, both of the layer. */
export function expertTensors(
  section: ModelSection,
  names: ExpertNames,
  { prefix, canonical }: { prefix: string; canonical: string },
): TensorMapping[] {
  const { hidden, ffn, experts } = moeSizes(section);
  const upTo = Array.from({ length: experts }, (_, expert) => expert);
  const each = (name: string, part: string, shape: readonly [number, number]) =>
    upTo.map((expert) =>
      oneExpert(`${prefix}.${name.replace("{e}", String(expert))}.weight`, `${canonical}.ffn.experts.${part}.weight`, {
        expert,
        experts,
        shape,
      })
    );
  return [
    whole(`${prefix}.${names.router}.weight`, `${canonical}.ffn.router.weight`, [experts, hidden]),
    ...each(names.gate, "gate", [ffn, hidden]),
    ...each(names.up, "up", [ffn, hidden]),
    ...each(names.down, "down", [hidden, ffn]),
    ...sharedTensors(section, names, { prefix, canonical }),
  ];
}

/** Those of the expert that every token goes to, where there is one. */
export function sharedTensors(
  section: ModelSection,
  { shared: names }: Pick<ExpertNames, "shared">,
  { prefix, canonical }: { prefix: string; canonical: string },
  joins: Shared = "softmax",
): TensorMapping[] {
  const { hidden, shared } = moeSizes(section);
  if (!names || shared === 0) return [];
  const ways = joins === "sigmoid" ? 1 : 2;
  return [
    whole(`${prefix}.${names.gate}.weight`, `${canonical}.ffn.shared.gate.weight`, [shared, hidden]),
    whole(`${prefix}.${names.up}.weight`, `${canonical}.ffn.shared.up.weight`, [shared, hidden]),
    whole(`${prefix}.${names.down}.weight`, `${canonical}.ffn.shared.down.weight`, [hidden, shared]),
    whole(`${prefix}.${names.join}.weight`, `${canonical}.ffn.shared_gate.weight`, [ways, hidden]),
    ...(joins === "softmax" ? [whole(`${prefix}.${names.join}.bias`, `${canonical}.ffn.shared_gate.bias`, [2])] : []),
  ];
}
