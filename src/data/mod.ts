/** Data sets, samplers and loaders. */
export type { Batch, DataPosition, MicroBatch } from "./batch.ts";
export { ignoreIndex, toMicroBatch } from "./batch.ts";
export { type BatchSpans, isSkipped, parseSkipBatches } from "./batch_skipper.ts";
export { createTrainLoader, type DataShard, type TrainDataOptions, type TrainLoader } from "./train_loader.ts";
export { createValidationLoaders, type ValidationDataOptions, type ValidationLoader } from "./validation_loader.ts";
export { loadTokenizer, type Tokenizer } from "./tokenizer.ts";
export {
  formatTokenizeSummary,
  runTokenize,
  type RunTokenizeOptions,
  tokenizeFiles,
  type TokenizeOptions,
  type TokenizeProgress,
  type TokenizeSummary,
  trainTokenizer,
} from "./tokenize.ts";
export { createTokenFile, type TokenFileWriter } from "./token_file_writer.ts";
export { sharedTablesFolder } from "./shared_tables.ts";
export { closeTokenFiles, openTokenFile, type SampleSource } from "./token_file.ts";
