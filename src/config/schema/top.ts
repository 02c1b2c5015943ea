import { z } from "zod";
import { anyMapping, bool, int, refused, text, textOrNull, works } from "../field.ts";
import { knownModelTypes, workingModelTypes } from "../families.ts";

/** Of fields that keep a part of the work in float32. */
const noSwitch = "has no meaning here: Troupe has no such library, and its kernels give the same result every time";

/** The fields outside any section. */
export const topFields = {
  JOB_NAME: works(text().min(1).default("AnonymousJob"), "Name of the run: in the paths of logs and in alert titles."),
  model_type: works(
    text().default("INTERNLM"),
    `Which model: ${workingModelTypes.join(", ")}, or a name that a module of runtime.plugins registers.`,
    {
      refuse: (value) =>
        knownModelTypes.includes(value as string) && !workingModelTypes.includes(value as string)
          ? `Troupe does not have this model yet; ${workingModelTypes.join(", ")} work`
          : undefined,
    },
  ),
  use_fp32_norm: works(bool().default(false), "Read weights of norms in float32, whatever model.dtype is."),
  output_tf32: works(
    bool().default(false),
    "Keep the output head and the logits in float32, whatever model.dtype is.",
  ),
  use_apex_adam: works(bool().default(false), "Another implementation of Adam with the same arithmetic.", {
    notice: "changes nothing: Troupe has one Adam, and the arithmetic is the same",
  }),
  cudnn_deterministic: works(bool().default(false), "A switch of the CUDA library.", { notice: noSwitch }),
  cudnn_benchmark: works(bool().default(false), "A switch of the CUDA library.", { notice: noSwitch }),
  metric_dtype: works(
    z.enum(["fp32"]).nullable().default(null),
    "With fp32, logits are cast to float32 before the metrics are computed.",
    { notice: "changes nothing: Troupe always does" },
  ),
  selective_checkpoint: refused(
    bool().default(false),
    "Recomputed layers keep their attention output, so that attention is not computed twice (isp only).",
  ),
  selective_checkpoint_offload: refused(bool().default(false), "Hold those attention outputs in host memory."),
  enable_tb: works(bool().default(true), "Write TensorBoard's event files."),
  tensorboard_folder: works(
    textOrNull().default(null),
    "Folder of TensorBoard's event files; null for tensorboards in the run's own folder.",
  ),
  resume_tb_folder: works(
    textOrNull().default(null),
    "TensorBoard folder of the run that this one continues: its files are copied first.",
  ),
  alert_address: refused(textOrNull().default(null), "Address of a general alert sink.", {
    instead: "monitor.alert.feishu_alert_address and monitor.alert.alert_file_path get alerts",
  }),
  batch_count: refused(int({ min: 0 }).default(0), "Batch counter to start from.", {
    instead: "a checkpoint brings its own, and data.skip_batches leaves batches out",
  }),
  TENSOR_SHAPE: refused(
    z.array(int({ min: 1 })).nullable().default(null),
    "Shape of the messages between pipeline stages, when it is not the computed one.",
  ),
  generation: refused(anyMapping().nullable().default(null), "Text generation: folders, eos_id, top_k, temperature.", {
    instead: "troupe convert makes a Hugging Face folder, from which other programs generate",
  }),
};
