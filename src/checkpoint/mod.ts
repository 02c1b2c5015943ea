/** Checkpoints, weight files and where they are stored. */
export { boxesOfFlatRange } from "./box.ts";
export { listCheckpoints, newestUsable, retireOld, verifyCheckpoint } from "./catalog.ts";
export { Checkpoint, openCheckpoint } from "./checkpoint.ts";
export { HuggingFaceFolder, writeHuggingFace } from "./hugging_face.ts";
export { entryKinds } from "./manifest.ts";
export type { EntryKind, GlobalTensor, Json, ShardReport } from "./manifest.ts";
export { decideSave, loadContents, planLoad } from "./policy.ts";
export type { LoadContent, LoadPath, LoadPlan } from "./policy.ts";
export { TensorFile } from "./safetensors.ts";
export {
  abandonCheckpoint,
  beginCheckpoint,
  commitCheckpoint,
  saveCheckpoint,
  wholeEntry,
  writeShard,
} from "./save.ts";
export type { ShardEntry } from "./save.ts";
export { createStopFile, readStopFile } from "./stop_file.ts";
export { parseStoragePath } from "./storage.ts";
