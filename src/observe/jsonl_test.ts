import { assertEquals } from "@std/assert";
import { AppendFile } from "./append_file.ts";
import { JsonLinesWriter } from "./jsonl.ts";

/** A path in a folder that goes away with the test. */
function scratch(name: string): { path: string } & Disposable {
  const folder = Deno.makeTempDirSync();
  return { path: `${folder}/${name}`, [Symbol.dispose]: () => Deno.removeSync(folder, { recursive: true }) };
}

const stepsIn = (path: string) =>
  Deno.readTextFileSync(path).split("\n").filter(Boolean).map((line) => JSON.parse(line).step);

Deno.test("JsonLinesWriter writes each line at once, with null for what JSON lacks", () => {
  using file = scratch("metrics.jsonl");
  using lines = new JsonLinesWriter(file.path);
  lines.write({ step: 0, loss: NaN, grad_norm: { "0_default": 1 } });
  assertEquals(Deno.readTextFileSync(file.path), '{"step":0,"loss":null,"grad_norm":{"0_default":1}}\n');
});

Deno.test("JsonLinesWriter cuts off repeated steps and a torn line on resume", () => {
  using file = scratch("metrics.jsonl");
  Deno.writeTextFileSync(
    file.path,
    '{"step":0}\n{"step":1}\n{"note":"no step"}\n{"step":2}\n{"step":3}\n{"step":4,"lo',
  );
  {
    using lines = new JsonLinesWriter(file.path, { resumeStep: 3 });
    lines.write({ step: 3 });
    lines.write({ step: 4 });
  }
  assertEquals(stepsIn(file.path), [0, 1, undefined, 2, 3, 4]);
  {
    using lines = new JsonLinesWriter(file.path, { resumeStep: 9 });
    lines.write({ step: 9 });
  }
  assertEquals(stepsIn(file.path), [0, 1, undefined, 2, 3, 4, 9]);
});

Deno.test("JsonLinesWriter cuts off a torn last line even where it belongs to a kept step", () => {
  using file = scratch("metrics.jsonl");
  Deno.writeTextFileSync(file.path, '{"step":0}\n{"step":1}');
  using lines = new JsonLinesWriter(file.path, { resumeStep: 2 });
  lines.write({ step: 2 });
  assertEquals(stepsIn(file.path), [0, 2]);
});

Deno.test("JsonLinesWriter starts over for a new run and steps over a damaged line", () => {
  using file = scratch("metrics.jsonl");
  Deno.writeTextFileSync(file.path, '{"step":0}\nnot json\n{"step":1}\n{"step":2}\n');
  new JsonLinesWriter(file.path, { resumeStep: 2 })[Symbol.dispose]();
  assertEquals(Deno.readTextFileSync(file.path), '{"step":0}\nnot json\n{"step":1}\n');
  new JsonLinesWriter(file.path)[Symbol.dispose]();
  assertEquals(Deno.readTextFileSync(file.path), "");
});

Deno.test("AppendFile tells once that writing fails, and does not throw", () => {
  using scratchFile = scratch("records");
  const errors: string[] = [];
  const file = new AppendFile(scratchFile.path, { onError: (message) => errors.push(message) });
  const record = new Uint8Array(8);
  assertEquals(file.append(record), true);
  file[Symbol.dispose]();
  assertEquals([file.append(record), file.append(record)], [false, false]);
  assertEquals(errors.length, 1);
  assertEquals(errors[0].startsWith(`Cannot write ${scratchFile.path}: `), true);
  assertEquals(Deno.statSync(scratchFile.path).size, 8);
});
