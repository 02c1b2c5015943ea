import { z } from "zod";
import { bool, float, int, looseText, refused, text, textOrNull, works } from "../field.ts";

/** What the model reads, and how much of it a step takes. */
export const dataSchema = z.strictObject({
  type: works(
    z.enum(["tokenized", "streaming", "megatron", "mocked"]).default("tokenized"),
    "Kind of data: tokenized (.bin and .meta files, or made-up data without train_folder), streaming (text in Parquet, JSON lines or .txt files), megatron, mocked.",
    { only: ["tokenized", "streaming"] },
  ),
  train_folder: works(textOrNull().default(null), "Folder of training data; null trains on made-up data."),
  valid_folder: works(
    textOrNull().default(null),
    "Folder of validation data, tokenized also where training streams; null validates on made-up data.",
  ),
  mixture: works(
    z.record(z.string(), float({ min: 0 })).nullable().default(null),
    "Weight of each folder inside train_folder: rows come from them in these proportions, those without a weight are left out; null takes every row once an epoch.",
  ),
  seq_len: works(int({ min: 1 }), "Longest sample, in tokens.", { example: 2048 }),
  micro_bsz: works(int({ min: 1 }), "Sequences of seq_len tokens in one micro-batch.", { example: 2 }),
  micro_num: works(int({ min: 1 }).default(1), "Micro-batches that a rank sums into one step."),
  gradient_accumulation: works(int({ min: 1 }), "Divisor of the loss; without a pipeline it is micro_num.", {
    derived: "micro_num",
    notice: "changes nothing: the loss is divided by the micro-batches that a step has",
  }),
  packed_length: works(int({ min: 1 }), "Tokens of a packed micro-batch; always computed.", {
    derived: "seq_len * micro_bsz",
  }),
  batch_size: works(int({ min: 1 }), "Micro-batches of a step, as the sampler calls them; always computed.", {
    derived: "micro_num",
  }),
  use_packed_dataset: works(bool().default(true), "Pack samples end to end; false pads each to seq_len."),
  pack_sample_into_one: works(
    bool().default(false),
    "Let the samples of one pack attend to each other; of a stream: fill rows instead of padding.",
  ),
  total_steps: works(int({ min: 1 }), "Optimizer steps of the whole run.", { example: 50000 }),
  skip_batches: works(looseText().default(""), 'Batches to leave out, such as "5-10,23": ascending, ends included.'),
  rampup_batch_size: works(
    looseText().default(""),
    'Growing batches, "start increment every": "2 2 100" starts with 2 micro-batches and adds 2 every 100 steps.',
  ),
  min_length: works(int({ min: 0 }).default(0), "Shorter samples are dropped."),
  min_length_dict: works(
    z.record(z.string(), int({ min: 0 })).nullable().default(null),
    "Another min_length for the files whose path contains a text.",
  ),
  seed: works(int({ min: 0 }).default(1024), "Seed of the order of the samples."),
  valid_every: works(int({ min: 0 }).default(0), "Evaluate after every so many steps; 0 for never."),
  valid_micro_num: works(int({ min: 1 }), "Micro-batches of one validation batch.", { derived: "micro_num" }),
  fixed_random_dataset_seqlen: works(bool().default(true), "Made-up samples all have seq_len tokens."),
  num_worker: works(int({ min: 0 }).default(4), "Loader workers.", {
    notice: "changes nothing: each rank has one loader, which reads ahead; the batches are the same with any number",
  }),
  tokenizer_path: works(
    textOrNull().default(null),
    "The tokenizer that the data was made with, or is made with while streaming.",
  ),
  empty_cache_and_diag_interval: works(
    int().default(50),
    "Batches between two self-tests of device and network, with a line on memory in the log file; 0 or less means 50.",
  ),
  diag_outlier_ratio: works(
    float(),
    "How much slower than the mean of the others a rank must be in a self-test to be named in an alert.",
    {
      derived: "1.1; never below 1",
    },
  ),
  use_shm: works(
    bool().default(false),
    "Share the tables of where samples are among the ranks of a host, in memory and once for all.",
  ),
  shm_path: works(
    text().default("/dev/shm/metacache"),
    "Folder of those tables; below /dev, where Deno lets nobody write, it is the folder of the run instead.",
  ),
  content_name: works(
    text().default("text"),
    "Column of a streaming data set that holds the text, or messages for the tokenizer's chat template.",
  ),
  subset_name: works(textOrNull().default(null), "Folder inside a streaming data set."),
  is_multimodal: refused(bool().default(false), "Samples have images."),
  image_folder: refused(textOrNull().default(null), "Folder of the images.", { onlyWith: "data.is_multimodal" }),
  image_size: refused(int({ min: 1 }).nullable().default(null), "Side of an image, in pixels.", {
    onlyWith: "data.is_multimodal",
  }),
  patch_size: refused(int({ min: 1 }).nullable().default(null), "Side of a patch, in pixels.", {
    onlyWith: "data.is_multimodal",
  }),
}).describe("Training and validation data");
