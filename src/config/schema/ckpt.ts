import { z } from "zod";
import { bool, int, refused, stepsOrNever, text, textOrNull, works } from "../field.ts";

/** Object stores, by the prefix of a folder. */
export const objectStorePrefix = /^(boto3|volc|oss2|s3|vc|ali):/;

const localOnly = (value: unknown) =>
  typeof value === "string" && objectStorePrefix.test(value)
    ? "Troupe does not reach object stores yet; a local folder works, such as local:checkpoints"
    : undefined;

/** Why `load_ckpt_info` cannot work, if it cannot. */
function unloadable(value: unknown): string | undefined {
  const info = value as { path: string | null; content: string[]; ckpt_type: string } | null;
  if (info === null || info.path === null) return undefined;
  const { path, content, ckpt_type } = info;
  if (!["internevo", "hf"].includes(ckpt_type)) {
    return `there is no ckpt_type ${
      JSON.stringify(ckpt_type)
    } here; internevo works (checkpoints of any layout), or hf ` +
      "(a Hugging Face folder)";
  }
  if (!content.includes("model") && !content.includes("all")) return "content without model loads nothing; add model";
  if (ckpt_type === "hf" && String(content) !== "model") {
    return "a Hugging Face folder holds the model alone; content: [model] works";
  }
  return localOnly(path);
}

const anyLayout = "changes nothing: a checkpoint of any layout loads in any other";

/** When checkpoints are written, kept and read. */
export const ckptSchema = z.strictObject({
  enable_save_ckpt: works(bool().default(true), "Save checkpoints at all."),
  save_ckpt_folder: works(textOrNull(), "Folder of the checkpoints, such as local:checkpoints.", {
    derived: "needed when saving, else null",
    example: "local:checkpoints",
    refuse: localOnly,
  }),
  checkpoint_every: works(
    stepsOrNever(),
    "Steps between checkpoints; null for the end only. The last step always saves.",
    {
      derived: "needed when saving, else null",
      example: 100,
    },
  ),
  keep_last: works(int({ min: 0 }).default(0), "Keep so many of the newest checkpoints; 0 keeps all."),
  auto_resume: works(bool(), "Go on from the newest complete checkpoint in the folder, if there is one.", {
    derived: "true, or the opposite of load_given_ckpt",
  }),
  load_ckpt_info: works(
    z.strictObject({
      path: textOrNull().default(null),
      content: z.preprocess(
        (value) => typeof value === "string" ? [value] : value,
        z.array(z.enum(["model", "sampler", "optimizer", "scheduler", "all"])).min(1),
      ).default(["model"]),
      ckpt_type: text().default("internevo"),
    }).nullable().default(null),
    "What to begin from, unless auto_resume finds a checkpoint of the run's own: {path, content, ckpt_type}. ckpt_type " +
      "internevo is a checkpoint of Troupe's, its content a list of model, optimizer, scheduler, sampler, or all; hf is a " +
      "Hugging Face folder, content [model].",
    { refuse: unloadable },
  ),
  snapshot_ckpt_folder: works(textOrNull(), "Folder of the snapshots.", {
    derived: "{save_ckpt_folder}/snapshot",
    refuse: localOnly,
  }),
  oss_snapshot_freq: works(
    stepsOrNever(),
    "Steps between snapshots, from 2 on; null for never. Of these checkpoints between checkpoints the newest two are kept.",
    { derived: "null" },
  ),
  enable_internevo2hf_ckpt: refused(bool().default(false), "Also write each checkpoint as a Hugging Face folder.", {
    instead: "troupe convert makes one of any checkpoint",
  }),
  async_upload: refused(bool(), "Upload to an object store while training goes on.", {
    derived: "false",
  }),
  async_upload_tmp_folder: refused(textOrNull(), "Where uploads wait.", {
    derived: "/dev/shm/internlm_tmp_ckpt/ with async_upload, else null",
    onlyWith: "ckpt.async_upload",
  }),
  stop_file_path: works(
    textOrNull().default(null),
    "A file for a number: 500 saves and stops at step 500, -500 saves there and goes on. The run creates it with 0.",
  ),
  load_ckpt_folder: works(
    textOrNull().default(null),
    "Older form of load_ckpt_info: model, sampler and optimizer of that checkpoint.",
    { refuse: localOnly },
  ),
  load_model_only_folder: works(
    textOrNull().default(null),
    "Older form of load_ckpt_info: the model of that checkpoint.",
    { refuse: localOnly },
  ),
  load_optimizer: works(bool().default(true), "Older form: whether load_ckpt_folder takes the optimizer too."),
  load_given_ckpt: works(bool().nullable().default(null), "Older form: the opposite of auto_resume."),
  generate_meta_data: works(bool().default(false), "Write data for a change of layout. Every checkpoint has it.", {
    notice: anyLayout,
  }),
  universal_ckpt: works(bool().default(false), "Load a checkpoint of another layout. Every checkpoint can be.", {
    notice: anyLayout,
  }),
}).describe("Checkpoints");
