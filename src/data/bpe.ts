/**
 * Byte-pair encoding, many times quicker than by the library that reads the tokenizer's file (Sennrich et al. 2016). Text
 * is cut into words that no token crosses; the ids of words met before are looked up, and other words are merged pair by
 * pair, from a heap of the pairs that stand in the word. What the tokenizer does around it (normalising, splitting, added
 * tokens) stays the library's, and so does every text with a character that the vocabulary cannot spell.
 */
import type { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { byteAlphabet } from "./bpe_training.ts";

/** What is read of a `tokenizer.json`. */
interface Definition {
  readonly normalizer?: unknown;
  readonly pre_tokenizer?: PreTokenizerDefinition | null;
  readonly added_tokens?: readonly { readonly content: string; readonly lstrip?: boolean; readonly rstrip?: boolean }[];
  readonly model: {
    readonly type?: string;
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly (string | readonly [string, string])[];
    readonly dropout?: number | null;
    readonly end_of_word_suffix?: string | null;
    readonly continuing_subword_prefix?: string | null;
    readonly continuing_subword_suffix?: string | null;
    readonly ignore_merges?: boolean;
    readonly byte_fallback?: boolean;
  };
}
interface PreTokenizerDefinition {
  readonly type: string;
  readonly pretokenizers?: readonly PreTokenizerDefinition[];
  readonly use_regex?: boolean;
  readonly add_prefix_space?: boolean;
}

/** What is used of the library's parts. */
interface Parts {
  readonly normalizer: ((text: string) => string) | null;
  readonly pre_tokenizer: (PreTokenizer & { readonly tokenizers?: readonly PreTokenizer[] }) | null;
  readonly splitter_unnormalized: { split(text: string): string[] };
  readonly added_tokens_map: ReadonlyMap<string, { readonly id: number }>;
  readonly remove_space?: boolean;
  readonly do_lowercase_and_remove_accent?: boolean;
}
interface PreTokenizer {
  (text: string | string[], options?: { section_index?: number }): string[];
  readonly pattern?: RegExp | null;
  readonly config?: { readonly invert?: boolean; readonly behavior?: string };
}

/** Ranks of merges by the two ids, and the id that each makes: open addressing, since a Map's keys would be objects. */
function mergeTable(merges: readonly (readonly [left: number, right: number, merged: number])[]) {
  const mask = 2 ** Math.ceil(Math.log2(merges.length * 2 + 2)) - 1;
  const lefts = new Int32Array(mask + 1).fill(-1), rights = new Int32Array(mask + 1), ranks = new Int32Array(mask + 1);
  const place = (left: number, right: number) => {
    let at = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> 7 & mask;
    while (lefts[at] !== -1 && (lefts[at] !== left || rights[at] !== right)) at = at + 1 & mask;
    return at;
  };
  merges.forEach(([left, right], rank) => {
    const at = place(left, right);
    lefts[at] = left;
    rights[at] = right;
    ranks[at] = rank;
  });
  const merged = Int32Array.from(merges, ([, , id]) => id);
  return {
    merged,
    /** The rank of a pair, or −1. */
    rank(left: number, right: number): number {
      const at = place(left, right);
      return lefts[at] === -1 ? -1 : ranks[at]!;
    },
  };
}
type MergeTable = ReturnType<typeof mergeTable>;

/** Positions in a word, by the rank of the pair that begins there; among equals the left one first. */
class PairQueue {
  #keys = new Float64Array(64);
  #size = 0;

  push(rank: number, position: number): void {
    if (this.#size === this.#keys.length) {
      const grown = new Float64Array(this.#size * 2);
      grown.set(this.#keys);
      this.#keys = grown;
    }
    const keys = this.#keys, key = rank * 0x100000000 + position;
    let at = this.#size++;
    for (let parent; at > 0 && keys[parent = at - 1 >> 1]! > key; at = parent) keys[at] = keys[parent]!;
    keys[at] = key;
  }

  /** The least key, rank × 2³² + position, or −1. */
  pop(): number {
    if (this.#size === 0) return -1;
    const keys = this.#keys, least = keys[0]!, key = keys[--this.#size]!;
    let at = 0;
    for (let child; (child = 2 * at + 1) < this.#size; at = child) {
      if (child + 1 < this.#size && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= key) break;
      keys[at] = keys[child]!;
    }
    keys[at] = key;
    return least;
  }
}

/** Merges a word's ids, of which there are `count`, in place; returns how many are left. */
function makeMerger({ rank, merged }: MergeTable) {
  const queue = new PairQueue();
  let next = new Int32Array(64), previous = new Int32Array(64);
  return (ids: Int32Array, count: number): number => {
    if (count < 2) return count;
    if (next.length < count) {
      next = new Int32Array(count * 2);
      previous = new Int32Array(count * 2);
    }
    for (let i = 0; i < count; i++) {
      next[i] = i + 1;
      previous[i] = i - 1;
      if (i + 1 === count) break;
      const found = rank(ids[i]!, ids[i + 1]!);
      if (found >= 0) queue.push(found, i);
    }
    for (let key; (key = queue.pop()) >= 0;) {
      const left = key % 0x100000000, best = (key - left) / 0x100000000, right = next[left]!;
      // Stale, where one of the two was merged since: what is gone has the id −1, which no pair has.
      if (right >= count || ids[left]! < 0 || rank(ids[left]!, ids[right]!) !== best) continue;
      ids[left] = merged[best]!;
      ids[right] = -1;
      const after = next[left] = next[right]!;
      if (after < count) {
        previous[after] = left;
        const found = rank(ids[left]!, ids[after]!);
        if (found >= 0) queue.push(found, left);
      }
      const before = previous[left]!;
      if (before >= 0) {
        const found = rank(ids[before]!, ids[left]!);
        if (found >= 0) queue.push(found, before);
      }
    }
    let kept = 0;
    for (let i = 0; i < count; i = next[i]!) ids[kept++] = ids[i]!;
    return kept;
  };
}

/** Words whose ids are kept, and room for their characters and ids; where it is full, all are forgotten. */
const cachedWords = 1 << 17, cachedCharacters = 1 << 20, cachedIds = 1 << 19;
/** Longer words are hardly met again. */
const longestCached = 64;

/** Ids of words by their characters, which are looked up where they stand in the text, without making a string of them. */
class WordCache {
  readonly ids = new Int32Array(cachedIds);
  /** Of the word found last: where its ids begin, and how many there are. */
  at = 0;
  count = 0;
  readonly #mask = 2 * cachedWords - 1;
  /** Numbers of words, plus one. */
  readonly #slots = new Int32Array(2 * cachedWords);
  /** Of each word: hash, first character, characters, first id, ids. */
  readonly #words = new Int32Array(5 * cachedWords);
  readonly #characters = new Uint16Array(cachedCharacters);
  #size = 0;
  #charactersUsed = 0;
  #idsUsed = 0;
  #hash = 0;
  #slot = 0;

  find(text: string, start: number, end: number): boolean {
    let hash = end - start;
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x5bd1e995) ^ hash >>> 15;
    this.#hash = hash;
    const words = this.#words, characters = this.#characters;
    for (let slot = (hash ^ hash >>> 13) & this.#mask;; slot = slot + 1 & this.#mask) {
      const word = 5 * (this.#slots[slot]! - 1);
      if (word < 0) {
        this.#slot = slot;
        return false;
      }
      if (words[word] !== hash || words[word + 2] !== end - start) continue;
      let from = words[word + 1]!, i = start;
      while (i < end && characters[from] === text.charCodeAt(i)) i++, from++;
      if (i < end) continue;
      this.at = words[word + 3]!;
      this.count = words[word + 4]!;
      return true;
    }
  }

  /** Adds the word that `find` has just missed. */
  add(text: string, start: number, end: number, ids: Int32Array): void {
    const length = end - start;
    if (
      this.#size === cachedWords || this.#charactersUsed + length > cachedCharacters ||
      this.#idsUsed + ids.length > cachedIds
    ) {
      this.#slots.fill(0);
      this.#size = this.#charactersUsed = this.#idsUsed = 0;
      this.find(text, start, end);
    }
    this.#words.set([this.#hash, this.#charactersUsed, length, this.#idsUsed, ids.length], 5 * this.#size);
    this.#slots[this.#slot] = ++this.#size;
    for (let i = start; i < end; i++) this.#characters[this.#charactersUsed++] = text.charCodeAt(i);
    this.ids.set(ids, this.#idsUsed);
    this.#idsUsed += ids.length;
  }
}

/** Words of a text, such that no token crosses from one to the next. */
interface WordSplitter {
  /** Pieces of the text, as the tokenizer's steps before the last one make them; absent where there are none. */
  readonly pieces?: (text: string, section: number) => string[];
  /** The words of a piece, each beginning where the last ended; absent where a piece is a word. */
  readonly words?: RegExp;
}

/** How the tokenizer splits text; undefined where that is not known to keep tokens within words. */
function wordSplitter(definition: Definition, parts: Parts): WordSplitter | undefined {
  const { pre_tokenizer: given } = definition, { pre_tokenizer: library } = parts;
  const steps = given?.type === "Sequence" ? given.pretokenizers ?? [] : given ? [given] : [];
  const last = steps.at(-1), sticky = ({ pattern }: PreTokenizer) => new RegExp(pattern!.source, "uy");
  if (last?.type !== "ByteLevel") {
    // SentencePiece's way: words begin with its sign for a space, which no token has after another character.
    if (Object.keys(definition.model.vocab).some((token) => /[^▁]▁/.test(token))) return undefined;
    const pieces = library && ((text: string, section_index: number) => library(text, { section_index }));
    return { ...(pieces && { pieces }), words: /▁*[^▁]+|▁+/uy };
  }
  if (last.add_prefix_space || steps.slice(0, -1).some(({ type }) => type === "ByteLevel" || type === "Metaspace")) {
    return undefined;
  }
  const made = given!.type === "Sequence" ? [...library!.tokenizers!] : [library!], bytes = made.pop()!;
  const ownWords = last.use_regex ?? true;
  const [only] = made;
  const isolates = only?.pattern && !only.config?.invert && only.config?.behavior?.toLowerCase() !== "removed";
  if (made.length === 1 && isolates && !ownWords) return { words: sticky(only) };
  const pieces = made.length > 0 && {
    pieces: (text: string, section_index: number) =>
      made.reduce((words, step) => step(words, { section_index }), [text]),
  };
  return { ...pieces, ...(ownWords && { words: sticky(bytes) }) };
}

/**
 * Encodes text as `library` does, without bos and eos; undefined for tokenizers that are not byte-pair encodings, or have
 * a peculiarity that this file does not know.
 *
 * @param definition The `tokenizer.json` that `library` was made from.
 */
export function bpeEncoder(
  library: HuggingFaceTokenizer,
  definition: object,
): ((text: string) => number[]) | undefined {
  const { model, added_tokens: added = [], normalizer } = definition as Definition;
  const parts = library as unknown as Parts;
  const odd = model.dropout || model.end_of_word_suffix || model.continuing_subword_prefix ||
    model.continuing_subword_suffix || parts.remove_space || parts.do_lowercase_and_remove_accent ||
    added.some(({ lstrip, rstrip, content }) => lstrip || rstrip || content === "");
  if (model.type !== "BPE" || odd) return undefined;
  const split = wordSplitter(definition as Definition, parts);
  if (!split) return undefined;
  const { pre_tokenizer: pre } = definition as Definition;
  const byteLevel = (pre?.type === "Sequence" ? pre.pretokenizers?.at(-1) : pre)?.type === "ByteLevel";

  const ids = new Map(Object.entries(model.vocab));
  const merges: [number, number, number][] = [];
  for (const merge of model.merges) {
    const [left, right] = typeof merge === "string" ? merge.split(" ", 2) as [string, string] : merge;
    const triple = [ids.get(left), ids.get(right), ids.get(left + right)];
    if (triple.includes(undefined)) return undefined;
    merges.push(triple as [number, number, number]);
  }
  const merge = makeMerger(mergeTable(merges));
  const alphabet = byteAlphabet(), byteIds = alphabet.map((sign) => ids.get(sign) ?? -1);
  const fallback = Array.from({ length: 256 }, (_, byte) => {
    return ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`) ?? -1;
  });
  if (byteLevel ? byteIds.includes(-1) : model.byte_fallback && fallback.includes(-1)) return undefined;
  const characterIds = new Map([...ids].filter(([token]) => [...token].length === 1));

  const encoder = new TextEncoder();
  let bytes = new Uint8Array(256), symbols = new Int32Array(256);
  /** Characters that have no id of their own, by −2 − their place in the list. */
  const unknown: string[] = [];

  /** The ids of one word, undefined where it cannot be spelled. */
  const encodeWord = (word: string): Int32Array | undefined => {
    let count = 0;
    if (symbols.length < word.length * 3) {
      symbols = new Int32Array(word.length * 6);
      bytes = new Uint8Array(word.length * 6);
    }
    if (byteLevel) {
      count = encoder.encodeInto(word, bytes).written;
      if (model.ignore_merges) {
        let spelled = "";
        for (let i = 0; i < count; i++) spelled += alphabet[bytes[i]!];
        const whole = ids.get(spelled);
        if (whole !== undefined) return Int32Array.of(whole);
      }
      for (let i = 0; i < count; i++) symbols[i] = byteIds[bytes[i]!]!;
    } else {
      const whole = model.ignore_merges ? ids.get(word) : undefined;
      if (whole !== undefined) return Int32Array.of(whole);
      unknown.length = 0;
      for (const character of word) {
        const id = characterIds.get(character);
        if (id === undefined && !model.byte_fallback) return undefined;
        symbols[count++] = id ?? -1 - unknown.push(character);
      }
    }
    const kept = merge(symbols, count);
    if (byteLevel || unknown.length === 0) return symbols.slice(0, kept);
    const spelled: number[] = [];
    for (let i = 0; i < kept; i++) {
      if (symbols[i]! >= 0) spelled.push(symbols[i]!);
      else for (const byte of encoder.encode(unknown[-2 - symbols[i]!]!)) spelled.push(fallback[byte]!);
    }
    return Int32Array.from(spelled);
  };

  const cache = new WordCache();
  /** Adds the ids of one word to `into`; false where it cannot be spelled. */
  const addWord = (text: string, start: number, end: number, into: number[]): boolean => {
    const short = end - start <= longestCached;
    if (short && cache.find(text, start, end)) {
      const { ids, at, count } = cache;
      for (let i = at; i < at + count; i++) into.push(ids[i]!);
      return true;
    }
    const found = encodeWord(text.slice(start, end));
    if (!found) return false;
    if (short) cache.add(text, start, end, found);
    for (let i = 0; i < found.length; i++) into.push(found[i]!);
    return true;
  };
  /** Adds the ids of a text without added tokens to `into`; false where the library must encode it. */
  const encodeSection = (text: string, section: number, into: number[]): boolean => {
    const { pieces, words } = split;
    for (const piece of pieces ? pieces(text, section) : [text]) {
      if (!words) {
        if (!addWord(piece, 0, piece.length, into)) return false;
        continue;
      }
      for (let start = 0; start < piece.length;) {
        words.lastIndex = start;
        if (!words.test(piece)) return false;
        const end = words.lastIndex;
        if (end === start || !addWord(piece, start, end, into)) return false;
        start = end;
      }
    }
    return true;
  };

  const escape = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const anyAdded = added.length > 0 ? new RegExp(added.map(({ content }) => escape(content)).join("|")) : undefined;
  const byLibrary = (text: string) => library.encode(text, { add_special_tokens: false }).ids;
  return (text) => {
    const into: number[] = [];
    if (text === "") return into;
    if (!anyAdded?.test(text)) {
      const normal = parts.normalizer ? parts.normalizer(text) : text;
      if (normal !== text && anyAdded?.test(normal)) return byLibrary(text);
      return encodeSection(normal, 0, into) ? into : byLibrary(text);
    }
    if (normalizer) return byLibrary(text);
    let section = 0;
    for (const piece of parts.splitter_unnormalized.split(text)) {
      const token = parts.added_tokens_map.get(piece);
      if (token) into.push(token.id);
      else if (!encodeSection(piece, section, into)) return byLibrary(text);
      section++;
    }
    return into;
  };
}
