/** What tests of verbs share. */
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
