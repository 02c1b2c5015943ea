/** `model.moe_layer_kwargs`: settings of a mixture-of-experts layer, by the name of its kind. */
import { z } from "zod";
import { bool, float, int } from "../field.ts";

const noise = z.preprocess((value) => value === "None" ? null : value, z.enum(["Jitter", "RSample"]).nullable());

/** What changes nothing here: there is one implementation, and its results are the same. */
const ignored = {
  use_grouped_mlp: bool().default(true),
  deterministic_mode: bool().default(false),
  token_dispatch_policy: z.enum(["alltoall", "allgather"]).default("alltoall"),
};

const gshardSchema = z.strictObject({
  capacity_factor: float({ above: 0 }).default(1),
  eval_capacity_factor: float({ above: 0 }).default(1),
  min_capacity: int({ min: 0 }).default(4),
  noisy_gate_policy: noise.default(null),
  drop_tokens: bool().default(true),
  use_rts: bool().default(true),
  use_fused_gating: bool().default(true),
  use_grouped_mlp: ignored.use_grouped_mlp,
});

const droplessSchema = z.strictObject({
  drop_and_pad: bool().default(false),
  drop_policy: z.enum(["probs", "position"]).default("probs"),
  capacity_factor: float({ above: 0 }).nullable().default(null),
  noisy_gate_policy: noise.default(null),
  /** Troupe's own: divide a token's weights by their sum. */
  norm_topk_prob: bool().default(true),
  ...ignored,
});

/** `MegaBlock`, and without its capacity `MegaBlock-Dropless`: defaults come from the section `moe`. */
const megaBlockSchema = z.strictObject({
  capacity_factor: float({ above: 0 }).default(1),
  drop_tokens: bool().default(true),
});
const megaBlockDroplessSchema = z.strictObject({});

export type GShardSettings = z.infer<typeof gshardSchema>;
export type DroplessSettings = z.infer<typeof droplessSchema>;

/** The layer's settings with defaults filled in. @throws {z.ZodError} */
export const gshardSettings = (kwargs: unknown): GShardSettings => gshardSchema.parse(kwargs);
export const megaBlockSettings = (kwargs: unknown): z.infer<typeof megaBlockSchema> => megaBlockSchema.parse(kwargs);
export const droplessSettings = (kwargs: unknown): DroplessSettings => droplessSchema.parse(kwargs);

const schemas: Readonly<Record<string, z.ZodObject>> = {
  GShard: gshardSchema,
  Dropless: droplessSchema,
  MegaBlock: megaBlockSchema,
  "MegaBlock-Dropless": megaBlockDroplessSchema,
};

/** What is wrong with the settings of a layer of this kind: paths within them, and sentences. */
export function moeLayerProblems(kind: string, kwargs: unknown): { path: string; message: string }[] {
  const schema: z.ZodObject = schemas[kind]!, parsed = schema.safeParse(kwargs);
  if (parsed.success) return [];
  return parsed.error.issues.flatMap((issue) => {
    if (issue.code === "unrecognized_keys") {
      return issue.keys.map((key) => ({
        path: key,
        message: `is no setting of a ${kind} layer; there are ${Object.keys(schema.shape).join(", ") || "none"}`,
      }));
    }
    return [{ path: issue.path.join("."), message: issue.message }];
  });
}
