/**
 * Which rows make each batch. Rows are shuffled anew every round (epoch) and dealt to data-parallel ranks in turn; the
 * batch may grow from a small beginning (`rampup_batch_size`).
 *
 * The order is defined for all ranks together: batch n is the next `size(n) × W` indices of the shuffled list, W the
 * data-parallel size that the run began with, and rank r takes every W-th of them from the r-th on. So one number, the
 * rows consumed by all ranks since the beginning, is the whole position; and another number of ranks deals the same
 * batches among itself, some getting one row more than others where it does not divide.
 */
import { RandomState, type RandomStateSnapshot } from "./mt19937.ts";
import { parseRampUp, type RampUp, rowsOfBatch } from "./ramp_up.ts";

export interface StaticBatchSamplerOptions {
  /** Rows in the data set. */
  readonly datasetRows: number;
  /** `micro_num`: rows of one rank in a full batch. */
  readonly batchSize: number;
  /** "start increment every", or nothing for full batches from the beginning. */
  readonly rampupBatchSize?: string | null;
  readonly microBsz?: number;
  /** @default {1024} */
  readonly seed?: number;
  /** Must be true: batches are always full. @default {true} */
  readonly dropLast?: boolean;
  readonly dataRank: number;
  readonly dataWorldSize: number;
  /** W, the ranks over which `batchSize` counts. @default {dataWorldSize} */
  readonly referenceWorldSize?: number;
  /** Whether the model runs in pipeline stages: then batch sizes must be multiples of `microBsz`. @default {false} */
  readonly pipeline?: boolean;
}

/** What InternEvo keeps of a sampler, in its names. */
export interface StaticBatchSamplerState {
  readonly batch_size: number;
  readonly raw_rampup_batch_size: string | null;
  /** The generator before the shuffle of the current round. */
  readonly rng_state: RandomStateSnapshot;
  readonly epoch: number;
  readonly seed: number;
  readonly data_world_size: number;
  readonly num_consumed_samples_in_epoch: number;
  readonly batch_count: number;
}

/** The indices of one step. */
export interface IndexBatch {
  /** Rows for this rank. */
  readonly indices: Uint32Array;
  /** Rows of all ranks. */
  readonly globalRows: number;
}

export class StaticBatchSampler {
  readonly options: StaticBatchSamplerOptions;
  readonly #seed: number;
  readonly #ramp: RampUp;
  #world: number;
  #random: RandomState;
  #roundState: RandomStateSnapshot;
  #indices = new Uint32Array(0);
  #usable = 0;
  #round = 0;
  /** Rows of all ranks consumed in this round. */
  #consumed = 0;
  /** Rows of all ranks consumed in all rounds. */
  #position = 0;
  #batchCount = 0;
  #epoch = 0;

  /** Throws `RangeError` for sizes that cannot make a batch, with the numbers. */
  constructor(options: StaticBatchSamplerOptions) {
    const { batchSize, dataRank, dataWorldSize, microBsz = 1 } = options;
    if (options.dropLast === false) {
      throw new RangeError("drop_last must be true: incomplete batches are not supported");
    }
    if (!(Number.isInteger(batchSize) && batchSize > 0)) {
      throw new RangeError(`data.micro_num must be a positive integer; got ${batchSize}`);
    }
    if (!(Number.isInteger(dataWorldSize) && Number.isInteger(dataRank) && dataRank >= 0 && dataRank < dataWorldSize)) {
      throw new RangeError(`Rank ${dataRank} is not one of ${dataWorldSize} data-parallel ranks`);
    }
    this.options = options;
    this.#seed = options.seed ?? 1024;
    this.#ramp = parseRampUp(options.rampupBatchSize, batchSize);
    this.#world = options.referenceWorldSize ?? dataWorldSize;
    if (options.pipeline) {
      const { start, increment } = this.#ramp;
      if ((batchSize - start) % increment !== 0) {
        throw new RangeError(
          `data.rampup_batch_size: steps of ${increment} from ${start} do not arrive at data.micro_num (${batchSize})`,
        );
      }
      for (const [name, value] of Object.entries({ "data.micro_num": batchSize, start, increment })) {
        if (value % microBsz !== 0) {
          throw new RangeError(
            `With pipeline stages ${name} (${value}) must be a multiple of data.micro_bsz (${microBsz})`,
          );
        }
      }
    }
    this.#random = new RandomState(this.#seed);
    this.#roundState = this.#random.save();
    this.#beginRound(0);
  }

  /** Rows of one rank in batch `count`. */
  #sizeOf(count: number): number {
    return rowsOfBatch(this.#ramp, this.options.batchSize, count);
  }

  /** Shuffles, with the generator going on from the round before, and cuts to whole batches. */
  #beginRound(batchCountAtStart: number): void {
    this.#roundState = this.#random.save();
    const rows = this.options.datasetRows;
    const { batchSize } = this.options;
    const { start, increment, every } = this.#ramp;
    const steps = Math.floor((batchSize - start) / increment);
    let rampRows = 0;
    if (batchCountAtStart < steps * every) {
      for (let j = 0; j < steps; j++) rampRows += (j * increment + start) * every * this.#world;
      if (rampRows > rows) {
        throw new RangeError(
          `data.rampup_batch_size: growing to ${batchSize} takes ${rampRows} rows, and the data set has ${rows}; ` +
            `fewer batches a size would work`,
        );
      }
    }
    const full = batchSize * this.#world;
    this.#usable = Math.floor((rows - rampRows) / full) * full + rampRows;
    if (this.#usable < batchSize) {
      throw new RangeError(
        `The data set has ${rows} rows of micro_bsz × seq_len tokens, and one batch takes ${full} ` +
          `(data.micro_num ${batchSize} × ${this.#world} data-parallel ranks). More data, or a smaller micro_num, ` +
          `micro_bsz or seq_len would work`,
      );
    }
    this.#indices = this.#random.permutation(rows).subarray(0, this.#usable);
  }

  /** The shuffled rows of this round, cut to whole batches: of all ranks together. */
  get indices(): Uint32Array {
    return this.#indices;
  }

  /** Batches of this round, from its beginning. */
  get length(): number {
    let batches = 0;
    let count = this.#roundStart();
    for (let rows = 0; rows < this.#usable; batches++) rows += this.#sizeOf(count++) * this.#world;
    return batches;
  }

  /** Index of the first batch of this round. */
  #roundStart(): number {
    let count = this.#batchCount;
    for (let left = this.#consumed; left > 0 && count > 0;) left -= this.#sizeOf(--count) * this.#world;
    return count;
  }

  /** True when the next batch begins a new round: also where batches that changed their size leave less than one of it. */
  get exhausted(): boolean {
    return this.#usable - this.#consumed < this.#sizeOf(this.#batchCount) * this.#world;
  }
  get batchCount(): number {
    return this.#batchCount;
  }
  /** Rounds gone through. */
  get round(): number {
    return this.#round;
  }
  /** Rows consumed in this round by one of the ranks that the run began with. */
  get numConsumedSamplesInEpoch(): number {
    return this.#consumed / this.#world;
  }
  /** W of the file's comment. */
  get referenceWorldSize(): number {
    return this.#world;
  }

  /** Rows consumed by all ranks since training began. */
  get globalPosition(): number {
    return this.#position;
  }

  /** Those of so many batches, as the ramp-up has them. */
  #rowsOf(batches: number): number {
    const { batchSize } = this.options, { start, increment, every } = this.#ramp;
    const ramp = Math.min(batches, Math.ceil((batchSize - start) / increment) * every);
    let rows = (batches - ramp) * batchSize * this.#world;
    for (let count = 0; count < ramp; count++) rows += this.#sizeOf(count) * this.#world;
    return rows;
  }

  /** Starts the next round if this one is exhausted. */
  beginRoundIfExhausted(): void {
    if (!this.exhausted) return;
    this.#round++;
    this.#consumed = 0;
    this.#beginRound(this.#batchCount);
  }

  /**
   * InternEvo's `set_epoch`: from the next round on, rows are shuffled by a generator seeded with seed + `epoch`. `seek`
   * and `restore` know nothing of it, `loadStateDict` does.
   */
  setEpoch(epoch: number): void {
    this.#epoch = epoch;
    this.#random = new RandomState(this.#seed + epoch);
  }

  /** The next batch; after the last of a round the first of the next. */
  next(): IndexBatch {
    this.beginRoundIfExhausted();
    const size = this.#sizeOf(this.#batchCount) * this.#world;
    const global = this.#indices.subarray(this.#consumed, this.#consumed + size);
    this.#consumed += global.length;
    this.#position += global.length;
    this.#batchCount++;
    const { dataRank, dataWorldSize } = this.options;
    return { indices: global.filter((_, i) => i % dataWorldSize === dataRank), globalRows: global.length };
  }

  stateDict(): StaticBatchSamplerState {
    return {
      batch_size: this.options.batchSize,
      raw_rampup_batch_size: this.options.rampupBatchSize ?? null,
      rng_state: this.#roundState,
      epoch: this.#epoch,
      seed: this.#seed,
      data_world_size: this.#world,
      num_consumed_samples_in_epoch: this.numConsumedSamplesInEpoch,
      batch_count: this.#batchCount,
    };
  }

  /**
   * Goes to the position of a sampler with the same seed, ramp-up and data-parallel size; throws `RangeError` naming what
   * differs. What follows is what the saved sampler would have given.
   */
  loadStateDict(state: StaticBatchSamplerState): void {
    const here = this.stateDict();
    for (const name of ["data_world_size", "raw_rampup_batch_size", "seed"] as const) {
      if ((state[name] ?? "") !== (here[name] ?? "")) {
        throw new RangeError(`The saved sampler has ${name} ${state[name]}, and this run has ${here[name]}`);
      }
    }
    this.#epoch = state.epoch;
    this.#batchCount = state.batch_count;
    this.#consumed = state.num_consumed_samples_in_epoch * this.#world;
    this.#position = this.#rowsOf(state.batch_count);
    this.#random.restore(state.rng_state);
    this.#beginRound(this.#roundStart());
  }

  /**
   * Goes to a place given by its numbers; `referenceWorldSize` becomes W. The generator runs through the rounds again,
   * which takes about a second for 10⁸ row-rounds.
   */
  restore(
    place: {
      round: number;
      numConsumedSamplesInEpoch: number;
      batchCount: number;
      /** Rows of all ranks before it. @default those of batches as this sampler has them */
      position?: number;
      referenceWorldSize?: number;
    },
  ): void {
    this.#world = place.referenceWorldSize ?? this.#world;
    this.#random = new RandomState(this.#seed);
    for (let round = 0; round < place.round; round++) this.#random.permutation(this.options.datasetRows);
    this.#round = place.round;
    this.#batchCount = place.batchCount;
    this.#consumed = place.numConsumedSamplesInEpoch * this.#world;
    this.#position = place.position ?? this.#rowsOf(place.batchCount);
    this.#beginRound(this.#roundStart());
    if (this.#consumed > this.options.datasetRows) {
      throw new RangeError(
        `The position is ${this.#consumed} rows into ${this.options.datasetRows}: it belongs to another data set`,
      );
    }
  }

  /**
   * Goes to the batch that begins when all ranks together have consumed `position` rows. Throws `RangeError` when no
   * batch begins there.
   */
  seek(position: number): void {
    let left = position;
    this.restore({ round: 0, numConsumedSamplesInEpoch: 0, batchCount: 0 });
    while (left > 0) {
      this.beginRoundIfExhausted();
      const size = this.#sizeOf(this.#batchCount) * this.#world;
      left -= size;
      this.#consumed += size;
      this.#batchCount++;
    }
    if (left !== 0) {
      throw new RangeError(`No batch begins at row ${position}; the nearest after it is ${position - left}`);
    }
    this.#position = position;
    this.beginRoundIfExhausted(); // the row after a round's last is the first of the next
  }
}
