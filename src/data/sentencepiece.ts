/**
 * SentencePiece models (`tokenizer.model`), as Llama and InternLM ship them: read here, normalised as they say, and
 * encoded by Hugging Face's library in the form into which its own converters bring them. Format: sentencepiece_model.proto
 * and normalizer.cc of https://github.com/google/sentencepiece.
 */

/** A field of a protocol buffer: varints as numbers, else bytes. */
type Field = readonly [number: number, value: number | Uint8Array];

/** Throws `RangeError` where the bytes are no protocol buffer. */
function* readFields(bytes: Uint8Array): Generator<Field> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 1, i = 0; i < 10; i++, shift *= 128) {
      const byte = view.getUint8(at++);
      value += (byte & 127) * shift;
      if (byte < 128) return value;
    }
    throw new RangeError(`a number at byte ${at} does not end`);
  };
  while (at < bytes.length) {
    const tag = varint(), field = Math.floor(tag / 8);
    switch (tag % 8) {
      case 0:
        yield [field, varint()];
        break;
      case 1:
      case 2:
      case 5: {
        const length = tag % 8 === 2 ? varint() : tag % 8 === 1 ? 8 : 4;
        if (at + length > bytes.length) throw new RangeError(`${length} bytes at byte ${at} are cut off`);
        yield [field, bytes.subarray(at, at += length)];
        break;
      }
      default:
        throw new RangeError(`a field of unknown kind ${tag % 8} at byte ${at}`);
    }
  }
}

/** What a piece is, by the numbers of the format. */
const kinds = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface SentencePieceModel {
  readonly type: "Unigram" | "BPE";
  readonly pieces: readonly { readonly text: string; readonly score: number; readonly kind: number }[];
  readonly unkId: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly byteFallback: boolean;
  readonly addDummyPrefix: boolean;
  readonly removeExtraWhitespaces: boolean;
  /** Replacements of characters, compiled; empty for none. */
  readonly charsMap: Uint8Array;
}

/** Throws `RangeError` that says why `bytes` is no model that can be used. */
export function parseSentencePiece(bytes: Uint8Array): SentencePieceModel {
  const decoder = new TextDecoder(), pieces: { text: string; score: number; kind: number }[] = [];
  let type = 1, unkId = 0, bosId = 1, eosId = 2, byteFallback = false;
  let addDummyPrefix = true, removeExtraWhitespaces = true, charsMap = new Uint8Array(0), suffix = false, escape = true;
  const inner = (value: Field[1]) => readFields(value instanceof Uint8Array ? value : new Uint8Array(0));
  for (const [field, value] of readFields(bytes)) {
    if (field === 1) {
      let text = "", score = 0, kind: number = kinds.normal;
      for (const [part, content] of inner(value)) {
        if (part === 1 && typeof content !== "number") text = decoder.decode(content);
        else if (part === 2 && typeof content !== "number" && content.length === 4) {
          score = new DataView(content.buffer, content.byteOffset).getFloat32(0, true);
        } else if (part === 3) kind = Number(content);
      }
      pieces.push({ text, score, kind });
    } else if (field === 2) {
      for (const [part, content] of inner(value)) {
        if (typeof content !== "number") continue;
        const id = content > 0x7fffffff ? -1 : content; // negative numbers are written as 64-bit ones
        if (part === 3) type = content;
        else if (part === 24) suffix = content !== 0;
        else if (part === 35) byteFallback = content !== 0;
        else if (part === 40) unkId = id;
        else if (part === 41) bosId = id;
        else if (part === 42) eosId = id;
      }
    } else if (field === 3) {
      for (const [part, content] of inner(value)) {
        if (part === 2 && typeof content !== "number") charsMap = content.slice();
        else if (part === 3) addDummyPrefix = content !== 0;
        else if (part === 4) removeExtraWhitespaces = content !== 0;
        else if (part === 5) escape = content !== 0;
      }
    }
  }
  if (pieces.length === 0) throw new RangeError("it has no pieces");
  if (type !== 1 && type !== 2) throw new RangeError(`models of type ${type} are not supported; Unigram and BPE are`);
  if (suffix || !escape) throw new RangeError("spaces that are suffixes, or not escaped, are not supported");
  if (pieces[unkId]?.kind !== kinds.unknown) throw new RangeError(`its piece ${unkId} should be the unknown one`);
  if (byteFallback && pieces.filter(({ kind }) => kind === kinds.byte).length !== 256) {
    throw new RangeError("it falls back to bytes, and does not have all 256 of them");
  }
  const control = (id: number) => pieces[id]?.kind === kinds.control ? id : undefined;
  return {
    type: type === 1 ? "Unigram" : "BPE",
    pieces,
    unkId,
    bosId: control(bosId),
    eosId: control(eosId),
    byteFallback,
    addDummyPrefix,
    removeExtraWhitespaces,
    charsMap,
  };
}

/**
 * Replaces characters by a compiled map: a double-array trie (Darts) from UTF-8 to offsets of replacements that end in
 * zero; the longest match counts.
 */
function charsReplacer(charsMap: Uint8Array): (text: string) => string {
  if (charsMap.length < 4) return (text) => text;
  const view = new DataView(charsMap.buffer, charsMap.byteOffset, charsMap.byteLength);
  const trieBytes = view.getUint32(0, true);
  if (trieBytes % 4 !== 0 || trieBytes === 0 || 4 + trieBytes > charsMap.length) {
    throw new RangeError("its map of characters is damaged");
  }
  const units = new Uint32Array(charsMap.slice(4, 4 + trieBytes).buffer), blob = charsMap.subarray(4 + trieBytes);
  const offsetOf = (unit: number) => (unit >>> 10) << ((unit & 0x200) >>> 6);
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  return (text) => {
    const bytes = encoder.encode(text), out: Uint8Array[] = [];
    let kept = 0, at = 0;
    while (at < bytes.length) {
      let node = offsetOf(units[0]!), length = 0, replacement = 0;
      for (let i = at; i < bytes.length; i++) {
        node ^= bytes[i]!;
        const unit = units[node];
        if (unit === undefined || (unit & 0x800000ff) >>> 0 !== bytes[i]) break;
        node ^= offsetOf(unit);
        if (unit & 0x100) {
          length = i + 1 - at;
          replacement = (units[node] ?? 0) & 0x7fffffff;
        }
      }
      if (length === 0) {
        const byte = bytes[at]!;
        at += byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
        continue;
      }
      const end = blob.indexOf(0, replacement);
      out.push(bytes.subarray(kept, at), blob.subarray(replacement, end < 0 ? blob.length : end));
      kept = at += length;
    }
    if (kept === 0) return text;
    out.push(bytes.subarray(kept));
    return out.map((part) => decoder.decode(part)).join("");
  };
}

/** Text as the model's pieces spell it: characters replaced, spaces trimmed and put into words as "▁". */
export function sentencePieceNormalizer(model: SentencePieceModel): (text: string) => string {
  const replace = charsReplacer(model.charsMap);
  return (text) => {
    let normal = replace(text);
    if (model.removeExtraWhitespaces) normal = normal.replace(/^ +| +$/g, "").replace(/ {2,}/g, " ");
    if (normal === "") return "";
    return ((model.addDummyPrefix ? " " : "") + normal).replaceAll(" ", "▁");
  };
}

/**
 * Parts of a long normalised text, none longer than `limit` and each ending before a word, or at least after a sign that
 * ends a sentence, where there is one: the library cannot take any number of tokens at once.
 */
export function* cutNormalised(text: string, limit = 1 << 14): Generator<string> {
  let from = 0;
  while (text.length - from > limit) {
    const part = text.slice(from, from + limit);
    const word = /^[^]*[^▁](?=▁)/.exec(part) ?? /^[^]*[\n。！？]/u.exec(part);
    let length = word?.[0].length ?? limit;
    if (word === null && /[\uD800-\uDBFF]$/.test(part)) length--;
    yield text.slice(from, from += length);
  }
  yield text.slice(from);
}

/** The model in the form of a `tokenizer.json`, for text that is normalised already. */
export function sentencePieceDefinition(model: SentencePieceModel): object {
  const { type, pieces, unkId, byteFallback } = model;
  // Only these come of text; bos and eos in it are plain characters, and a byte's piece is no name of it.
  const ofText = ({ kind }: { kind: number }) => kind === kinds.normal || kind === kinds.userDefined;
  const addedTokens = pieces.flatMap(({ text, kind }, id) =>
    kind === kinds.userDefined ? [{ id, content: text, special: false, normalized: false, single_word: false }] : []
  );
  const shared = {
    version: "1.0",
    added_tokens: addedTokens,
    normalizer: null,
    pre_tokenizer: null,
    decoder: null,
    post_processor: null,
  };
  if (type === "Unigram") {
    const hidden = Math.min(...pieces.map(({ score }) => score)) - 1000;
    return {
      ...shared,
      model: {
        type,
        unk_id: unkId,
        byte_fallback: byteFallback,
        vocab: pieces.map((piece, id) =>
          ofText(piece) || id === unkId ? [piece.text, piece.score] : [`\0${piece.text}`, hidden]
        ),
      },
    };
  }
  const vocab: Record<string, number> = Object.create(null);
  pieces.forEach(({ text }, id) => vocab[text] = id);
  const merges: { pair: [string, string]; score: number; id: number }[] = [];
  pieces.forEach((piece, id) => {
    if (piece.kind !== kinds.normal) return;
    const characters = [...piece.text];
    for (let cut = 1; cut < characters.length; cut++) {
      const pair: [string, string] = [characters.slice(0, cut).join(""), characters.slice(cut).join("")];
      if (pair.every((part) => vocab[part] !== undefined && ofText(pieces[vocab[part]]!))) {
        merges.push({ pair, score: piece.score, id });
      }
    }
  });
  merges.sort((a, b) => b.score - a.score || a.id - b.id);
  return {
    ...shared,
    model: {
      type,
      vocab,
      merges: merges.map(({ pair }) => pair),
      unk_token: pieces[unkId]!.text,
      fuse_unk: true,
      byte_fallback: byteFallback,
    },
  };
}

/** Text of ids; control pieces are left out. */
export function sentencePieceDecoder(model: SentencePieceModel): (ids: ArrayLike<number>) => string {
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  return (ids) => {
    const bytes: number[] = [];
    let begun = !(model.addDummyPrefix || model.removeExtraWhitespaces);
    for (let i = 0; i < ids.length; i++) {
      const piece = model.pieces[ids[i]!];
      if (!piece || piece.kind === kinds.control) continue;
      if (piece.kind === kinds.byte) bytes.push(Number(piece.text.slice(1, -1)));
      else if (piece.kind === kinds.unknown) bytes.push(...encoder.encode(" ⁇ "));
      else {
        const leads = !begun && bytes.length === 0 && piece.text.startsWith("▁");
        if (leads && !model.removeExtraWhitespaces) begun = true; // only the one space that encoding put there
        bytes.push(...encoder.encode(piece.text.slice(leads ? 1 : 0).replaceAll("▁", " ")));
      }
    }
    return decoder.decode(Uint8Array.from(bytes));
  };
}
