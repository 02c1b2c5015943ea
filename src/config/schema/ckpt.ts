import { z } from "zod";
import { bool, int, refused, stepsOrNever, text, textOrNull, works } from "../field.ts";

/** Object stores, by the prefix of a folder. */
export const objectStorePrefix = /^(boto3|volc|oss2|s3|vc|ali):/;

const localOnly = (value: unknown) =>
  typeof value === "string" && objectStorePrefix.test(value)
    ? "Troupe does not write to object stores yet; a local folder works, such as local:checkpoints"
    : undefined;

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
  auto_resume: works(bool().default(true), "Go on from the newest complete checkpoint in the folder, if there is one."),
  load_ckpt_info: refused(
    z.strictObject({
      path: textOrNull().default(null),
      content: z.array(z.enum(["model", "sampler", "optimizer", "scheduler", "all"])).default(["model"]),
      ckpt_type: text().default("internevo"),
    }).nullable().default(null),
    "A checkpoint to begin from: {path, content: [model, optimizer, scheduler, sampler or all], ckpt_type}.",
  ),
  snapshot_ckpt_folder: refused(textOrNull(), "Folder of the snapshots.", {
    derived: "{save_ckpt_folder}/snapshot",
    onlyWith: "ckpt.oss_snapshot_freq",
  }),
  oss_snapshot_freq: refused(stepsOrNever(), "Steps between snapshots, of which two are kept; null for never.", {
    derived: "null",
  }),
  enable_internevo2hf_ckpt: refused(bool().default(false), "Also write each checkpoint as a Hugging Face folder."),
  async_upload: refused(bool(), "Upload to an object store while training goes on.", {
    derived: "false",
  }),
  async_upload_tmp_folder: refused(textOrNull(), "Where uploads wait.", {
    derived: "/dev/shm/internlm_tmp_ckpt/ with async_upload, else null",
    onlyWith: "ckpt.async_upload",
  }),
  stop_file_path: refused(
    textOrNull().default(null),
    "A file whose number tells the run at which step to save or stop.",
  ),
  load_ckpt_folder: refused(textOrNull().default(null), "Older form of load_ckpt_info."),
  load_model_only_folder: refused(textOrNull().default(null), "Older form of load_ckpt_info, for weights alone."),
  load_optimizer: refused(bool().default(true), "Older form: load optimizer state too."),
  load_given_ckpt: refused(bool().nullable().default(null), "Older form: the opposite of auto_resume."),
  generate_meta_data: refused(bool().default(false), "Write data for a change of layout. Every checkpoint has it."),
  universal_ckpt: refused(bool().default(false), "Load a checkpoint of another layout. Every checkpoint can be."),
}).describe("Checkpoints");
