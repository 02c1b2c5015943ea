/** Which optimizer group each parameter belongs to. */

export interface GroupedParameter {
  /** Canonical name. */
  readonly name: string;
  /** Stored in `float32` although the model's type is another: norms under `use_fp32_norm`, gates, a `tf32` head. */
  readonly float32?: boolean;
  /** Belongs to one expert of a mixture of experts (the gate does not). */
  readonly expert?: boolean;
  /** Takes no gradient: it is left out. */
  readonly frozen?: boolean;
}

export interface ParameterGroup<T extends GroupedParameter> {
  /** `default`, `fp32`, or `moe_ep_size_{n}`. */
  readonly name: string;
  /** InternEvo's key of the group's gradient norm: `{index}_{name}`. */
  readonly key: string;
  readonly weightDecay: number;
  /** The axis whose ranks share the group's optimizer state. */
  readonly partition: "zero1" | "expert_data";
  /** The axis over which the group's gradients are averaged. */
  readonly reduce: "data" | "weight_data" | "expert_data";
  readonly parameters: readonly T[];
}

export interface ParameterGroupOptions {
  readonly weightDecay: number;
  /** In `isp` gradients are averaged over the weight-data axis. @default {"mtp"} */
  readonly tensorMode?: "mtp" | "msp" | "fsp" | "isp";
  /** Above 1 adds the group of the experts. @default {1} */
  readonly numExperts?: number;
  /** Names the experts' group. @default {1} */
  readonly expertParallelSize?: number;
}

/**
 * InternEvo's groups, in order, empty ones included, so that a group's index never depends on the layout. All carry the
 * same weight decay: norms and biases are decayed too.
 *
 * @throws {TypeError} where a parameter is an expert's but the model has none.
 *
 * @example
 * ```ts
 * import { parameterGroups } from "./parameter_groups.ts";
 * const groups = parameterGroups([{ name: "output" }, { name: "norm", float32: true }], { weightDecay: 0.01 });
 * console.assert(groups.map((group) => group.key).join() === "0_default,1_fp32");
 * ```
 */
export function parameterGroups<T extends GroupedParameter>(
  parameters: readonly T[],
  options: ParameterGroupOptions,
): ParameterGroup<T>[] {
  const { weightDecay, tensorMode = "mtp", numExperts = 1, expertParallelSize = 1 } = options;
  if (!(weightDecay >= 0)) {
    throw new RangeError(`Cannot group parameters: weight_decay must be 0 or above, found ${weightDecay}`);
  }
  const trained = parameters.filter((parameter) => !parameter.frozen);
  const expert = trained.find((parameter) => parameter.expert);
  if (expert !== undefined && numExperts <= 1) {
    throw new TypeError(
      `Cannot group parameters: ${expert.name} belongs to an expert, which needs num_experts above 1, found ${numExperts}`,
    );
  }
  const reduce = tensorMode === "isp" ? "weight_data" : "data";
  const groups: Omit<ParameterGroup<T>, "key">[] = [
    {
      name: "default",
      weightDecay,
      partition: "zero1",
      reduce,
      parameters: trained.filter((parameter) => !parameter.expert && !parameter.float32),
    },
    {
      name: "fp32",
      weightDecay,
      partition: "zero1",
      reduce,
      parameters: trained.filter((parameter) => !parameter.expert && parameter.float32),
    },
  ];
  if (numExperts > 1) {
    groups.push({
      name: `moe_ep_size_${expertParallelSize}`,
      weightDecay,
      partition: "expert_data",
      reduce: "expert_data",
      parameters: trained.filter((parameter) => parameter.expert),
    });
  }
  return groups.map((group, index) => ({ key: `${index}_${group.name}`, ...group }));
}
