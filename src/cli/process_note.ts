/** Which processes a run has, in a file of its folder: for people, and for tools that look for them. */
import type { RunFolder } from "../observe/run_folder.ts";

export interface NotedRank {
  readonly rank: number;
  /** On its own host; 0 while that has not said it yet. */
  readonly pid: number;
  readonly attempt: number;
}

export interface ProcessNote extends Disposable {
  /** Something changed: the note is written soon, once for all that changes in one moment. */
  changed(): void;
}

/**
 * Keeps `ranks.json`, which is whole at every moment.
 *
 * @param ranks those there are, by number
 * @param momentMs the processes of many hosts come one after the other
 */
export function keepProcessNote(
  { path }: Pick<RunFolder, "path">,
  ranks: () => readonly NotedRank[],
  momentMs = 50,
): ProcessNote {
  const file = `${path}/ranks.json`;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const write = (ranks: readonly NotedRank[]) => {
    timer = undefined;
    try {
      Deno.writeTextFileSync(`${file}.new`, JSON.stringify({ root: Deno.pid, ranks }) + "\n");
      Deno.renameSync(`${file}.new`, file);
    } catch {
      // A full disk: a note is no reason to end a run.
    }
  };
  return {
    changed: () => void (timer ??= setTimeout(() => write(ranks()), momentMs)),
    [Symbol.dispose]() {
      clearTimeout(timer);
      write([]);
    },
  };
}
