import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "node:path";
import { loadTokenizer } from "../tokenizer.ts";
import { createTrainLoader, type TrainDataOptions } from "../train_loader.ts";
import { inScratch, writeFiles } from "./_testing.ts";
import { loadChatTemplate } from "./chat.ts";

const demoTokenizer = new URL("../../../configs/demo/tokenizer.json", import.meta.url).pathname;
const template = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'tool' %}" +
  "{{ raise_exception('No tools here') }}{% endif %}[{{ message.role }}] {{ message.content | trim }}{{ eos_token }}" +
  "{% endfor %}";
const settings = (chat_template: unknown) =>
  JSON.stringify({ bos_token: "<s>", eos_token: { content: "</s>" }, chat_template });

function dataIn(folder: string, chat_template: unknown): TrainDataOptions {
  const rows = [
    [{ role: "user", content: " Who goes to sea? " }, { role: "assistant", content: "The captain." }],
    [{ role: "tool", content: "x" }],
    [],
    "Plain text.",
  ];
  writeFiles(folder, {
    "text/a.jsonl": rows.map((messages) => JSON.stringify({ messages }) + "\n").join(""),
    "tokenizer/tokenizer.json": Deno.readFileSync(demoTokenizer),
    "tokenizer/tokenizer_config.json": settings(chat_template),
  });
  return {
    type: "streaming",
    train_folder: join(folder, "text"),
    tokenizer_path: join(folder, "tokenizer"),
    content_name: "messages",
    seq_len: 64,
    micro_bsz: 1,
  };
}

Deno.test("createTrainLoader() makes text of conversations by the tokenizer's chat template, and leaves out what it refuses", () =>
  inScratch(async (folder) => {
    for (const given of [template, [{ name: "tools", template: "x" }, { name: "default", template }]]) {
      const data = dataIn(folder, given), notices: string[] = [];
      const loader = createTrainLoader(data, { dataRank: 0, dataWorldSize: 1, onNotice: (text) => notices.push(text) });
      const { encode, bosId, eosId } = loadTokenizer(data.tokenizer_path!);
      const { microBatches: [row] } = await loader.next();
      loader.close();
      const expected = [
        [bosId!, ...encode("[user] Who goes to sea?"), eosId!, ...encode("[assistant] The captain."), eosId!],
        [bosId!, ...encode("Plain text."), eosId!],
      ].sort((a, b) => a.length - b.length);
      const documents: number[][] = [];
      for (let start = 0; start < 64 && row!.inputIds[start] !== 0; start = row!.segmentEnd[start]!) {
        documents.push([...row!.inputIds.subarray(start, row!.segmentEnd[start]!)]);
      }
      assertEquals(documents.sort((a, b) => a.length - b.length), expected);
      assertStringIncludes(
        notices.join("\n"),
        'line 2: the field "messages" holds messages that the chat template refuses',
      );
      assertStringIncludes(notices.join("\n"), 'line 3: the field "messages" holds a list that holds no messages');
    }
  }));

Deno.test("loadChatTemplate() takes chat_template.jinja first, knows where there is none, and says what is wrong with one", () =>
  inScratch(async (folder) => {
    const path = join(folder, "tokenizer.json"), messages = [{ role: "user", content: "x" }];
    assertEquals(loadChatTemplate(path), undefined);
    writeFiles(folder, { "tokenizer_config.json": settings("{{ messages[0].content }}") });
    assertEquals(loadChatTemplate(path)!.render(messages), "x");
    writeFiles(folder, { "chat_template.jinja": "{{ messages[0].role }}" });
    assertEquals(loadChatTemplate(path)!.render(messages), "user");
    writeFiles(folder, { "chat_template.jinja": "{% for %}" });
    assertThrows(() => loadChatTemplate(path), SyntaxError, `The chat template in ${folder} cannot be used`);

    // Without a template a conversation is a row that cannot be used.
    const data = dataIn(folder, undefined), notices: string[] = [];
    writeFiles(folder, { "text/a.jsonl": JSON.stringify({ messages }) + "\n" });
    const loader = createTrainLoader(data, { dataRank: 0, dataWorldSize: 1, onNotice: (text) => notices.push(text) });
    await assertRejects(() => loader.next(), RangeError, "no document to train on");
    assertStringIncludes(notices.join("\n"), "a list, and the tokenizer has no chat template");
    loader.close();
  }));
