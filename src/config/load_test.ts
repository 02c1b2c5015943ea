import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { ConfigError } from "./error.ts";
import { loadConfig } from "./load.ts";

async function withFiles(files: Record<string, string>, run: (dir: string) => Promise<void>): Promise<void> {
  const dir = await Deno.makeTempDir();
  try {
    for (const [name, text] of Object.entries(files)) {
      await Deno.mkdir(`${dir}/${name}`.replace(/\/[^/]*$/, ""), { recursive: true });
      await Deno.writeTextFile(`${dir}/${name}`, text);
    }
    await run(dir);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

const same = (actual: unknown, expected: unknown) => assertEquals(JSON.parse(JSON.stringify(actual)), expected);

async function refusal(file: string, set?: string[]): Promise<string> {
  return (await assertRejects(() => loadConfig(file, set ? { set } : {}), ConfigError) as ConfigError).message;
}

Deno.test("loadConfig() merges a chain of files, the extending one over the extended", async () => {
  await withFiles({
    "base/one.yaml": "JOB_NAME: one\nmodel: {num_layers: 2, hidden_size: 64}\ndata: {seq_len: 8}",
    "base/two.yaml": "extends: one.yaml\nmodel: {num_layers: 4}",
    "run.yaml": "extends: base/two.yaml\ndata: {micro_bsz: 1}\nparallel: {tensor: 2}",
  }, async (dir) => {
    same(await loadConfig(`${dir}/run.yaml`), {
      JOB_NAME: "one",
      model: { num_layers: 4, hidden_size: 64 },
      data: { seq_len: 8, micro_bsz: 1 },
      parallel: { tensor: { size: 2 } },
    });
  });
});

Deno.test("loadConfig() keeps the rest of a section that is changed by a bare number", async () => {
  await withFiles({
    "one.yaml": "parallel: {tensor: {size: 1, mode: isp}}\npipeline: {schedule: 1f1b}",
    "run.yaml": "extends: one.yaml\nparallel: {tensor: 2}",
  }, async (dir) => {
    same(await loadConfig(`${dir}/run.yaml`, { set: ["parallel.zero1=1"] }), {
      parallel: { tensor: { size: 2, mode: "isp" }, pipeline: { schedule: "1f1b" }, zero1: { size: 1 } },
    });
  });
});

Deno.test("loadConfig() applies --set in order, with YAML values", async () => {
  await withFiles({ "run.yaml": "model: {num_layers: 2}\nmonitor:" }, async (dir) => {
    const set = [
      "model.num_layers=3",
      "model.num_layers=4",
      "model.mlp_ratio=8/3",
      "adam.lr=1e-4",
      "data.train_folder=None",
      "data.skip_batches=5-10,23",
      "data.use_shm=true",
      "runtime.plugins=[./a.ts, ./b.ts]",
      "monitor.alert.alert_file_path=a=b",
      "data.valid_folder=",
    ];
    same(await loadConfig(`${dir}/run.yaml`, { set }), {
      model: { num_layers: 4, mlp_ratio: "8/3" },
      monitor: { alert: { alert_file_path: "a=b" } },
      adam: { lr: 1e-4 },
      data: { train_folder: null, skip_batches: "5-10,23", use_shm: true, valid_folder: null },
      runtime: { plugins: ["./a.ts", "./b.ts"] },
    });
  });
});

Deno.test("loadConfig() refuses files that extend each other in a circle", async () => {
  await withFiles({ "a.yaml": "extends: b.yaml", "b.yaml": "extends: a.yaml" }, async (dir) => {
    assertStringIncludes(await refusal(`${dir}/a.yaml`), "extends itself");
  });
});

Deno.test("loadConfig() says what is wrong with a file", async () => {
  await withFiles({
    "bad.yaml": "model: {a: [1\n",
    "list.yaml": "- 1",
    "orphan.yaml": "extends: nowhere.yaml",
    "two.yaml": "extends: [a, b]",
    "run.py": "x = 1",
    "itself.yaml": "model: &m {inner: *m}",
    "empty.yaml": "",
  }, async (dir) => {
    assertStringIncludes(await refusal(`${dir}/none.yaml`), "there is no such file");
    assertStringIncludes(await refusal(dir), "it is a folder");
    assertStringIncludes(await refusal(`${dir}/bad.yaml`), "cannot be read");
    assertStringIncludes(await refusal(`${dir}/list.yaml`), "no mapping");
    assertStringIncludes(await refusal(`${dir}/orphan.yaml`), "orphan.yaml");
    assertStringIncludes(await refusal(`${dir}/two.yaml`), "one file");
    assertStringIncludes(await refusal(`${dir}/run.py`), "YAML");
    await refusal(`${dir}/itself.yaml`);
    same(await loadConfig(`${dir}/empty.yaml`), {});
  });
});

Deno.test("loadConfig() refuses malformed --set", async () => {
  await withFiles({ "run.yaml": "" }, async (dir) => {
    for (const change of ["model", "=3", "a..b=3", "a.b=[1"]) {
      assertStringIncludes(await refusal(`${dir}/run.yaml`, [change]), `--set ${change}`);
    }
  });
});

Deno.test("loadConfig() cannot be made to change the prototype of objects", async () => {
  await withFiles({ "run.yaml": "__proto__: {polluted: 1}" }, async (dir) => {
    await loadConfig(`${dir}/run.yaml`, { set: ["__proto__.polluted=1", "model.__proto__.polluted=1"] });
    assertEquals(({} as Record<string, unknown>).polluted, undefined);
  });
});
