/** Checkpoints, weight files and where they are stored. */
export { boxesOfFlatRange, wholeBox } from "./box.ts";
export type { Box } from "./box.ts";
export { listCheckpoints, newestUsable, retireOld, verifyCheckpoint } from "./catalog.ts";
export type { CatalogEntry, Retired } from "./catalog.ts";
export { Checkpoint, CheckpointError, openCheckpoint } from "./checkpoint.ts";
export { DiskFullError } from "./durable.ts";
export { HuggingFaceFolder, writeHuggingFace } from "./hugging_face.ts";
export type { WriteHuggingFaceOptions } from "./hugging_face.ts";
export { entryKinds } from "./manifest.ts";
export type { EntryKind, GlobalTensor, Json, Manifest, ShardReport, StoredBox } from "./manifest.ts";
export { decideSave, loadContents, parseLoadCkptInfo, planLoad } from "./policy.ts";
export type { LoadContent, LoadOptions, LoadPath, LoadPlan, SaveDecision, SavePolicy } from "./policy.ts";
export { dtypeBytes, float32From, float32To, TensorFile, writeSafetensors } from "./safetensors.ts";
export type { Dtype, TensorInfo, TensorSource, WrittenFile } from "./safetensors.ts";
export {
  abandonCheckpoint,
  beginCheckpoint,
  commitCheckpoint,
  saveCheckpoint,
  wholeEntry,
  writeShard,
} from "./save.ts";
export type { CommitOptions, ShardEntry } from "./save.ts";
export { createStopFile, parseStopFile, readStopFile } from "./stop_file.ts";
export { joinStoragePath, parseStoragePath, storagePing } from "./storage.ts";
export type { StoragePath } from "./storage.ts";
