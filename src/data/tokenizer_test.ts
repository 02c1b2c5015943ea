import { assert, assertEquals, assertThrows } from "@std/assert";
import { parseTiktoken, tiktokenDefinition, tiktokenFamily } from "./tiktoken.ts";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { inScratch } from "./stream/_testing.ts";
import { loadTokenizer } from "./tokenizer.ts";

interface Case {
  readonly text: string;
  readonly ids: readonly number[];
  readonly decoded?: string;
}

const testData = (name: string) => new URL(`./testdata/${name}`, import.meta.url).pathname;
/** What the reference libraries make of the texts. */
const encodings: Readonly<Record<string, readonly Case[]>> = JSON.parse(
  Deno.readTextFileSync(testData("encodings.json")),
);

for (const name of ["bpe", "unigram"]) {
  Deno.test(`loadTokenizer() encodes and decodes by a SentencePiece model as its own library does: ${name}`, () => {
    const tokenizer = loadTokenizer(testData(`${name}.model`));
    assertEquals([tokenizer.bosId, tokenizer.eosId], [1, 2]);
    assertEquals([tokenizer.tokenOf(1), tokenizer.idOf("</s>")], ["<s>", 2]);
    for (const { text, ids, decoded } of encodings[name]!) {
      assertEquals(tokenizer.encode(text), ids, JSON.stringify(text));
      assertEquals(tokenizer.decode(ids), decoded, JSON.stringify(text));
    }
    // Longer than the library can take at once; words are told apart by one space, as the model trims them.
    const words = encodings[name]!.map(({ text }) => text.trim()).filter((text) => /^\w+( \w+)+$/.test(text));
    const long = `${words.join(" ")} `.repeat(600).trimEnd(), each = words.flatMap((text) => tokenizer.encode(text));
    assert(long.length > 1 << 15);
    assertEquals(tokenizer.encode(long), Array(600).fill(each).flat());
    assertEquals(tokenizer.decode([1, ...tokenizer.encode("the end"), 2]), "the end");
    assert(encodings[name]!.every(({ ids }) => ids.every((id) => id < tokenizer.vocabSize)));
  });
}

Deno.test("tiktokenDefinition() encodes by ranks as tiktoken does, with the families' ways to split text", () => {
  const ranks = parseTiktoken(Deno.readTextFileSync(testData("small.tiktoken")));
  for (const [name, count] of [["cl100k", 100256], ["gpt2", 50256]] as const) {
    const definition = tiktokenDefinition(ranks, { ...tiktokenFamily(count), special: {} });
    const tokenizer = new HuggingFaceTokenizer(definition, {});
    for (const { text, ids } of encodings[name]!) {
      assertEquals(tokenizer.encode(text, { add_special_tokens: false }).ids, ids, JSON.stringify(text));
      if (text !== "") assertEquals(tokenizer.decode([...ids], { clean_up_tokenization_spaces: false }), text);
    }
  }
});

Deno.test("loadTokenizer() tells tokenizers by their content, not by their names", () =>
  inScratch((folder) => {
    // As many ranks as GPT-2 has: after the real ones, bytes that no text has.
    const small = Deno.readTextFileSync(testData("small.tiktoken")), count = small.trim().split("\n").length;
    const more = Array.from({ length: 50256 - count }, (_, i) => {
      const token = String.fromCharCode(0xff, i >> 8 & 255, i & 255, 0xff);
      return `${btoa(token)} ${count + i}\n`;
    });
    Deno.writeTextFileSync(`${folder}/tokenizer.model`, small + more.join(""));
    const gpt2 = loadTokenizer(folder);
    assertEquals([gpt2.path, gpt2.vocabSize], [`${folder}/tokenizer.model`, 50257]);
    assertEquals([gpt2.bosId, gpt2.eosId, gpt2.idOf("<|endoftext|>")], [undefined, 50256, 50256]);
    for (const { text, ids } of encodings.gpt2!) assertEquals(gpt2.encode(text), ids);

    Deno.copyFileSync(testData("unigram.model"), `${folder}/tokenizer.json`);
    const unigram = loadTokenizer(folder);
    assertEquals(unigram.path, `${folder}/tokenizer.json`);
    assertEquals(unigram.encode(encodings.unigram![3]!.text), encodings.unigram![3]!.ids);
  }));

Deno.test("loadTokenizer() refuses in one sentence what is no tokenizer it can use", () =>
  inScratch((folder) => {
    const path = `${folder}/tokenizer`;
    const refuses = (content: string | Uint8Array, what: string) => {
      Deno.writeFileSync(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
      assertThrows(() => loadTokenizer(path), SyntaxError, what);
    };
    const small = Deno.readTextFileSync(testData("small.tiktoken")), model = Deno.readFileSync(testData("bpe.model"));
    refuses(small, "tokens; known are 50256 (gpt2)");
    refuses(small + "what?\n", "is no token and rank: what?");
    refuses(small.split("\n").slice(9).join("\n"), "it lacks byte");
    refuses(model.subarray(0, model.length - 5), "are cut off");
    refuses(model.subarray(0, 2000), "a SentencePiece model");
    refuses("no tokenizer", "is not JSON");
    refuses("{}", "has no model with a vocabulary");
    assertThrows(() => loadTokenizer(`${folder}/none`), Deno.errors.NotFound, "none is missing");
  }));
