/** A rank's part in saving: when a checkpoint is due, its own shard of it, and what becomes of the whole. */
import { decideSave, readStopFile, type ShardReport, writeShard } from "../src/checkpoint/mod.ts";
import type { DataPosition } from "../src/data/mod.ts";
import { globalTensors, shardEntries } from "../src/train/checkpoint.ts";
import type { Session } from "../src/train/session.ts";
import type { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import type { monitorProtocol } from "./monitor.ts";
import { type AnyProtocol, type Context, plainReason, type Ref } from "./runtime/mod.ts";

export interface SavingOptions {
  readonly session: Session;
  readonly checkpoints: Ref<typeof checkpointManagerProtocol>;
  readonly monitor: Ref<typeof monitorProtocol>;
  readonly runFolder: string;
  /** Which start of the ranks this is. */
  readonly attempt: number;
  /** Step of the run's checkpoint that this start goes on from; -1 for none. */
  readonly from: number;
}

export class Saving {
  readonly #options: SavingOptions;
  #last: { readonly step: number; readonly snapshot: boolean };
  /** What the stop file last said, so that it is announced once. */
  #stopFile: string | undefined;

  constructor(options: SavingOptions) {
    this.#options = options;
    this.#last = { step: options.from, snapshot: false };
  }

  /**
   * Saves where the record's rules, the stop file or `force` say so. A save that fails is told, and the run goes on.
   *
   * @param position after the last batch used; absent before the first
   * @returns why it failed, and whether the stop file ends the run
   */
  async save(
    position: DataPosition | undefined,
    { ask }: Pick<Context<AnyProtocol>, "ask">,
    { force = false } = {},
  ): Promise<{ unsaved?: string; stop: boolean }> {
    const { session, checkpoints, monitor, runFolder, attempt } = this.#options;
    const { trainer, config: { ckpt, data } } = session, { mesh } = trainer.model.world, step = trainer.stepCount;
    const { save, stop, announce } = decideSave(
      {
        enableSaveCkpt: ckpt.enable_save_ckpt,
        checkpointEvery: ckpt.checkpoint_every,
        ossSnapshotFreq: ckpt.oss_snapshot_freq,
        totalSteps: data.total_steps,
      },
      step,
      { force, stopAt: await this.#stopStep() },
    );
    if (announce && announce !== this.#stopFile && mesh.rank === 0) monitor.send({ kind: "alert", text: announce });
    if (announce) this.#stopFile = announce;
    const snapshot = save === "snapshot";
    const done = step === this.#last.step && (snapshot || !this.#last.snapshot);
    if (save === "none" || done || position === undefined) return { stop };
    if (mesh.logs) monitor.send({ kind: "phase", name: "saving" });
    const options = { timeoutMs: Infinity };
    try {
      const writers = mesh.world, request = { kind: "begin", step, snapshot, attempt, writers } as const;
      const begun = ask(checkpoints, request, options).then(({ directory }) => directory);
      try {
        const { directory, shards } = await this.#writeOwn(begun);
        const state = { ...(session.state(position) as object), run_folder: runFolder };
        const tensors = globalTensors(trainer.model);
        await ask(checkpoints, { kind: "commit", directory, step, shards, tensors, state, writers }, options);
      } catch (error) {
        begun.then((directory) => checkpoints.send({ kind: "abandon", directory }), () => {});
        throw error;
      }
      this.#last = { step, snapshot };
      return { stop };
    } catch (error) {
      const reason = plainReason(error, "the checkpoint manager");
      const text = `Checkpoint of step ${step} was not saved: ${reason}`;
      if (mesh.rank === 0) monitor.send({ kind: "alert", text });
      return { unsaved: reason, stop };
    }
  }

  /**
   * Writes this rank's part, and waits until all have written theirs: who is missing shows here, where ranks ask each
   * other, rather than at the root. One that got no folder says so like one that could not write: the others wait for its word.
   *
   * @param begun the folder to write into
   * @throws where any rank could not write
   */
  async #writeOwn(begun: Promise<string>): Promise<{ directory: string; shards: ShardReport[] }> {
    const { session } = this.#options, { model } = session.trainer, writer = model.world.mesh.rank;
    const entries = shardEntries(model);
    const written = begun.then(async (directory) => ({
      directory,
      shards: entries.length > 0 ? [await writeShard({ directory, writer, entries })] : [],
    }));
    const [failures] = await session.agree([await written.then(() => 0, () => 1)]);
    const own = await written;
    if (failures! > 0) throw new Error("another rank could not write its part");
    return own;
  }

  /** The stop file's number, as rank 0 sees it. */
  async #stopStep(): Promise<number> {
    const { session } = this.#options, path = session.config.ckpt.stop_file_path;
    if (path === null) return 0;
    const [step] = await session.agree([session.trainer.model.world.mesh.rank === 0 ? await this.#readStop(path) : 0]);
    return step!;
  }

  /** One that cannot be read is told, once, and asks for nothing: a slip must not end a run. */
  async #readStop(path: string): Promise<number> {
    try {
      return await readStopFile(path);
    } catch (error) {
      const text = `${(error as Error).message}; the run goes on`;
      if (text !== this.#stopFile) this.#options.monitor.send({ kind: "alert", text });
      this.#stopFile = text;
      return 0;
    }
  }
}
