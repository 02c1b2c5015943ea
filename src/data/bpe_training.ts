/**
 * Training of a byte-level BPE tokenizer (Sennrich et al. 2016; bytes and pre-tokenisation as in GPT-2, Radford et al.
 * 2019). Counts of pairs are kept up to date merge by merge, so that the cost is that of the places a merge touches.
 */

/** GPT-2's pre-tokenisation: contractions, words, numbers, other signs, each with one leading space; then white space. */
const words = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** GPT-2's printable stand-ins for the 256 bytes. */
export function byteAlphabet(): string[] {
  const printable = (byte: number) =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  let moved = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : 256 + moved++));
}

/** Special tokens at the head of the vocabulary. Id 0 is never a training target, so no text maps to it. */
const specialTokens = ["<unk>", "<s>", "</s>"] as const;

export interface BpeTrainer {
  /** Counts the words of a piece of text. */
  add(text: string): void;
  /**
   * Learns the vocabulary. It stays below `vocabSize` entries (special tokens and bytes included) where the text holds no
   * more pairs that occur twice. Returns the content of a `tokenizer.json`.
   */
  train(vocabSize: number, onProgress?: (entries: number) => void): TokenizerJson;
}

/** What Hugging Face's libraries read. */
export interface TokenizerJson {
  version: string;
  added_tokens: { id: number; content: string; special: boolean; [flag: string]: unknown }[];
  model: { type: "BPE"; vocab: Record<string, number>; merges: string[]; [option: string]: unknown };
  [part: string]: unknown;
}

/** Pairs by count, the largest on top; among equals the pair of the smaller ids. Stale entries are sorted out by users. */
class PairHeap {
  #counts: number[] = [];
  #pairs: number[] = [];

  #before(i: number, j: number): boolean {
    return this.#counts[i] !== this.#counts[j] ? this.#counts[i] > this.#counts[j] : this.#pairs[i] < this.#pairs[j];
  }
  #swap(i: number, j: number): void {
    [this.#counts[i], this.#counts[j]] = [this.#counts[j], this.#counts[i]];
    [this.#pairs[i], this.#pairs[j]] = [this.#pairs[j], this.#pairs[i]];
  }
  push(count: number, pair: number): void {
    let i = this.#counts.push(count) - 1;
    this.#pairs.push(pair);
    for (let parent; i > 0 && this.#before(i, parent = (i - 1) >> 1); i = parent) this.#swap(i, parent);
  }
  pop(): { count: number; pair: number } | undefined {
    if (this.#counts.length === 0) return undefined;
    const top = { count: this.#counts[0], pair: this.#pairs[0] };
    this.#swap(0, this.#counts.length - 1);
    this.#counts.pop();
    this.#pairs.pop();
    for (let i = 0;;) {
      let first = i;
      for (const child of [2 * i + 1, 2 * i + 2]) {
        if (child < this.#counts.length && this.#before(child, first)) first = child;
      }
      if (first === i) return top;
      this.#swap(i, first);
      i = first;
    }
  }
}

/** Room for ids in a pair's key: left × this + right. */
const pairBase = 2 ** 26;

/**
 * @example
 * ```ts
 * import { createBpeTrainer } from "./bpe_training.ts";
 * const trainer = createBpeTrainer();
 * trainer.add("low lower lowest low");
 * console.assert(trainer.train(262).model.merges[0] === "l o");
 * ```
 */
export function createBpeTrainer(): BpeTrainer {
  const wordCounts = new Map<string, number>();
  return {
    add(text) {
      for (const [word] of text.matchAll(words)) wordCounts.set(word, (wordCounts.get(word) ?? 0) + 1);
    },
    train(vocabSize, onProgress) {
      const alphabet = byteAlphabet();
      const tokens: string[] = [...specialTokens, ...alphabet];
      if (!(Number.isInteger(vocabSize) && vocabSize >= tokens.length && vocabSize < pairBase)) {
        throw new RangeError(
          `A byte-level vocabulary has from ${tokens.length} to ${pairBase - 1} entries; got ${vocabSize}`,
        );
      }
      const encoder = new TextEncoder();
      const symbols: number[][] = [];
      const counts: number[] = [];
      for (const [word, count] of wordCounts) {
        symbols.push(Array.from(encoder.encode(word), (byte) => specialTokens.length + byte));
        counts.push(count);
      }
      const pairCounts = new Map<number, number>();
      const places = new Map<number, Set<number>>();
      const heap = new PairHeap();
      /** Adds a pair of word `w` (or takes it away, for a negative `count`). */
      const note = (left: number, right: number, count: number, w: number) => {
        const pair = left * pairBase + right;
        pairCounts.set(pair, (pairCounts.get(pair) ?? 0) + count);
        if (count < 0) return pair;
        let set = places.get(pair);
        if (!set) places.set(pair, set = new Set());
        set.add(w);
        return pair;
      };
      symbols.forEach((word, w) => {
        for (let i = 0; i + 1 < word.length; i++) note(word[i], word[i + 1], counts[w], w);
      });
      for (const [pair, count] of pairCounts) heap.push(count, pair);

      const merges: string[] = [];
      while (tokens.length < vocabSize) {
        const top = heap.pop();
        if (!top || top.count < 2) break;
        if (pairCounts.get(top.pair) !== top.count) continue; // stale: pushed again when its count changed
        const left = Math.floor(top.pair / pairBase);
        const right = top.pair % pairBase;
        const merged = tokens.push(tokens[left] + tokens[right]) - 1;
        merges.push(`${tokens[left]} ${tokens[right]}`);
        const changed = new Set<number>();
        for (const w of places.get(top.pair)!) {
          const word = symbols[w];
          for (let i = 0; i + 1 < word.length; i++) {
            if (word[i] !== left || word[i + 1] !== right) continue;
            if (i > 0) {
              changed.add(note(word[i - 1], left, -counts[w], w));
              changed.add(note(word[i - 1], merged, counts[w], w));
            }
            if (i + 2 < word.length) {
              changed.add(note(right, word[i + 2], -counts[w], w));
              changed.add(note(merged, word[i + 2], counts[w], w));
            }
            word.splice(i, 2, merged);
          }
        }
        places.delete(top.pair);
        pairCounts.delete(top.pair);
        changed.delete(top.pair);
        for (const pair of changed) {
          const count = pairCounts.get(pair)!;
          if (count > 0) heap.push(count, pair);
          else {
            pairCounts.delete(pair);
            places.delete(pair);
          }
        }
        if (merges.length % 256 === 0) onProgress?.(tokens.length);
      }
      onProgress?.(tokens.length);
      return {
        version: "1.0",
        truncation: null,
        padding: null,
        added_tokens: specialTokens.map((content, id) => ({
          id,
          content,
          single_word: false,
          lstrip: false,
          rstrip: false,
          normalized: false,
          special: true,
        })),
        normalizer: null,
        pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
        post_processor: null,
        decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
        model: {
          type: "BPE",
          dropout: null,
          unk_token: null,
          continuing_subword_prefix: null,
          end_of_word_suffix: null,
          fuse_unk: false,
          byte_fallback: false,
          ignore_merges: false,
          vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
          merges,
        },
      };
    },
  };
}
