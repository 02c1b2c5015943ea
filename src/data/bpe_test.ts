import { assert, assertEquals } from "@std/assert";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { bpeEncoder } from "./bpe.ts";
import { createBpeTrainer } from "./bpe_training.ts";
import { RandomState } from "./mt19937.ts";
import { parseSentencePiece, sentencePieceDefinition } from "./sentencepiece.ts";
import { parseTiktoken, tiktokenDefinition, tiktokenFamily } from "./tiktoken.ts";

const testData = (name: string) => new URL(`./testdata/${name}`, import.meta.url).pathname;

/** Text of words, numbers, signs, other scripts, spaces in a row, lone surrogates and special tokens. */
function* texts(count: number): Generator<string> {
  const random = new RandomState(5), take = <T>(from: readonly T[]) => from[random.randomInterval(from.length - 1)]!;
  const parts = [
    ..."the of and ing low lower lowest est er a b c Hello WORLD it's we'll don't '".split(" "),
    ...[" ", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", "▁", "▁▁", " ▁"],
    ...["0", "12", "12345", ".", ",", "...", "!?", "(", "->", "_", "http://x.y/?z=1"],
    ...["ñ", "é", "日本語", "こんにちは。", "😀", "👩‍👩‍👧", "\u0301", "\ud800", "\udc00x", "Ǆ", "ß", "İ", "\0", "\u00a0"],
    ...["<s>", "</s>", "<unk>", "<|endoftext|>", "<|end", "<s", "<0x41>"],
  ];
  for (let i = 0; i < count; i++) {
    let text = "";
    for (let n = random.randomInterval(60); n >= 0; n--) text += take(parts);
    yield text;
  }
  yield "";
  yield "x".repeat(5000) + " " + "ab".repeat(3000) + "日本".repeat(2000);
}

const trained = () => {
  const trainer = createBpeTrainer();
  for (const text of texts(150)) trainer.add(text);
  return trainer.train(700);
};
const ranks = () => parseTiktoken(Deno.readTextFileSync(testData("small.tiktoken")));
const llama = () => sentencePieceDefinition(parseSentencePiece(Deno.readFileSync(testData("bpe.model")))) as object;

const definitions: Readonly<Record<string, () => object>> = {
  "a byte-level BPE": trained,
  "GPT-2's ranks": () => tiktokenDefinition(ranks(), tiktokenFamily(50256)),
  "cl100k's ranks": () => tiktokenDefinition(ranks(), tiktokenFamily(100256)),
  "o200k's ranks": () => tiktokenDefinition(ranks(), tiktokenFamily(199998)),
  "a SentencePiece model": llama,
  "Llama's tokenizer.json": () => ({
    ...llama(),
    added_tokens: [{ id: 1, content: "<s>", special: true }, { id: 2, content: "</s>", special: true }],
    normalizer: {
      type: "Sequence",
      normalizers: [{ type: "Prepend", prepend: "▁" }, { type: "Replace", pattern: { String: " " }, content: "▁" }],
    },
  }),
  "a tokenizer.json with Metaspace": () => ({
    ...llama(),
    added_tokens: [{ id: 1, content: "<s>", special: true, normalized: false }],
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false },
  }),
  "NFC before a byte-level BPE": () => ({ ...trained(), normalizer: { type: "NFC" } }),
};

for (const [name, define] of Object.entries(definitions)) {
  Deno.test(`bpeEncoder() gives the ids of the tokenizers' library: ${name}`, () => {
    const definition = define(), library = new HuggingFaceTokenizer(definition, {});
    const encode = bpeEncoder(library, definition);
    assert(encode);
    let tokens = 0;
    for (const text of texts(150)) {
      const expected = library.encode(text, { add_special_tokens: false }).ids, found = encode(text);
      if (found.join() !== expected.join()) assertEquals(found, expected, JSON.stringify(text.slice(0, 300)));
      tokens += found.length;
    }
    assert(tokens > 5000);
  });
}

Deno.test("bpeEncoder() leaves tokenizers to the library that it does not know", () => {
  const definition = trained(), { model } = definition;
  const other = (changes: object) => {
    const changed = { ...definition, ...changes };
    return bpeEncoder(new HuggingFaceTokenizer(changed, {}), changed);
  };
  assert(other({}));
  assertEquals(other({ model: { ...model, end_of_word_suffix: "</w>" } }), undefined);
  assertEquals(other({ model: { ...model, vocab: { ...model.vocab, "a▁": 700 } }, pre_tokenizer: null }), undefined);
  assertEquals(other({ model: { ...model, merges: [...model.merges, "Ġthe Ġthe"] } }), undefined);
  assertEquals(other({ added_tokens: [{ id: 0, content: "<mask>", lstrip: true }] }), undefined);
});
