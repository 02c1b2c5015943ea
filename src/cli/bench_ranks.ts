/** Ranks of a bench, a process each. */
import type { Report } from "./bench_line.ts";
import { type Permissions, selfCommand } from "./self.ts";

/**
 * Runs this program once for each rank with `verb`, hands each its task as JSON on standard input, and reports the lines
 * that rank 0 prints. Throws what a rank that failed says.
 */
export async function benchRanks<Task>(
  { verb, permissions, world, task, env: own = () => ({}), report }: {
    readonly verb: readonly string[];
    readonly permissions: Permissions;
    readonly world: number;
    readonly task: (rank: number) => Task;
    readonly env?: (rank: number) => Record<string, string>;
    readonly report: Report;
  },
): Promise<void> {
  const { command, args, env } = selfCommand(verb, permissions);
  const outputs = await Promise.all(Array.from({ length: world }, async (_, rank) => {
    const child = new Deno.Command(command, {
      args,
      env: { ...env, ...own(rank) },
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    await new Blob([JSON.stringify(task(rank))]).stream().pipeTo(child.stdin);
    return await child.output();
  }));
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  const failed = outputs.find(({ success }) => !success);
  if (failed) throw new Error(text(failed.stderr).replace(/^troupe bench: /, "") || "a rank's process failed");
  for (const line of text(outputs[0]!.stdout).split("\n")) report(JSON.parse(line));
}
