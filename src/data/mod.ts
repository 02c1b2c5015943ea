/** Data sets, samplers and loaders. */
export type { Batch, DataPosition, MicroBatch } from "./batch.ts";
export { ignoreIndex } from "./batch.ts";
export { createTrainLoader, type TrainDataOptions, type TrainLoader } from "./train_loader.ts";
export { createValidationLoaders, type ValidationLoader } from "./validation_loader.ts";
export { loadTokenizer, type Tokenizer } from "./tokenizer.ts";
export { formatTokenizeSummary, runTokenize, type TokenizeProgress } from "./tokenize.ts";
export { createTokenFile } from "./token_file_writer.ts";
