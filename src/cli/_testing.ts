/** What tests of verbs share. */
import { join } from "node:path";
import { main } from "./main.ts";

export interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** Runs the program in this process and keeps what it prints. Not for two at once. */
export async function troupe(...args: string[]): Promise<Ran> {
  const out: string[] = [], err: string[] = [];
  const { log, error } = console;
  console.log = (...words: unknown[]) => void out.push(words.join(" "));
  console.error = (...words: unknown[]) => void err.push(words.join(" "));
  try {
    return { code: await main(args), out: out.join("\n"), err: err.join("\n") };
  } finally {
    Object.assign(console, { log, error });
  }
}

/** Every line of standard output as JSON. */
export const jsonLines = <T = Record<string, unknown>>({ out }: Ran): T[] =>
  out.split("\n").map((line) => JSON.parse(line) as T);

/** A folder of its own for the test, removed afterwards. */
export async function inScratch(run: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

export interface TinyRun {
  readonly config: string;
  readonly tokenizer: string;
}

/** A run record of a tiny model, with a tokenizer and data of its own, all below `folder`. */
export async function tinyRun(folder: string): Promise<TinyRun> {
  const [text, tokenizer, config] = ["sea.txt", "tokenizer.json", "tiny.yaml"].map((name) => join(folder, name));
  const paragraphs = Array.from({ length: 40 }, (_, i) => `Paragraph ${i} says that the sea is kind to the captain.`);
  await Deno.writeTextFile(text, paragraphs.join("\n\n"));
  const { code, err } = await troupe("tokenize", "--tokenizer", tokenizer, "--train_bpe", "280", "--out", folder, text);
  if (code !== 0) throw new Error(err);
  await Deno.writeTextFile(
    config,
    JSON.stringify({
      JOB_NAME: "tiny",
      model_type: "LLAMA2",
      model: { num_layers: 1, hidden_size: 16, num_attention_heads: 2, vocab_size: 280, mlp_ratio: 2, multiple_of: 8 },
      data: {
        train_folder: join(folder, "train"),
        tokenizer_path: tokenizer,
        seq_len: 16,
        micro_bsz: 2,
        micro_num: 2,
        total_steps: 5,
      },
      adam: { lr: 1e-3 },
      ckpt: { enable_save_ckpt: false },
    }),
  );
  return { config, tokenizer };
}

/** A folder on a file system of 1 MiB, where one can be mounted; else says why not and runs nothing. */
export async function onSmallDisk(run: (folder: string) => Promise<void>): Promise<void> {
  const { state } = await Deno.permissions.query({ name: "run", command: "mount" });
  if (state !== "granted") return console.log("skipped: needs --allow-run=mount,umount and root");
  await inScratch(async (folder) => {
    const { success, stderr } = await new Deno.Command("mount", {
      args: ["-t", "tmpfs", "-o", "size=1m", "tmpfs", folder],
    }).output();
    if (!success) return console.log(`skipped: cannot mount: ${new TextDecoder().decode(stderr).trim()}`);
    try {
      await run(folder);
    } finally {
      await new Deno.Command("umount", { args: [folder] }).output();
    }
  });
}
