import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { stub } from "./compile.ts";
import { denoCommand, permissionFlags, programFile } from "./self.ts";

/** A program of the same build as Troupe that uses everything which could get lost on the way into one file. */
const standIn = `
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { z } from "zod";
import shader from "../../kernels/add.wgsl" with { type: "text" };
import { enterUserFolder, entryUrl, programFile, programForm, selfCommand } from "./self.ts";

async function start(): Promise<void> {
  enterUserFolder();
  const [verb, ...rest] = Deno.args;
  if (verb === "rank") return console.log(JSON.stringify({ rest, folder: Deno.cwd() }));
  const worker = new Worker(new URL(entryUrl), { workerData: "loader" });
  const said = await new Promise((resolve) => worker.once("message", resolve));
  await worker.terminate();
  const { command, args, env } = selfCommand(["rank", "a b", "$HOME"], { read: true, env: true });
  const { stdout, stderr } = await new Deno.Command(command, { args, env }).output();
  const child = new TextDecoder().decode(stdout);
  console.log(JSON.stringify({
    args: Deno.args,
    form: programForm,
    folder: Deno.cwd(),
    worker: said,
    child: child ? JSON.parse(child) : new TextDecoder().decode(stderr),
    shader,
    number: z.coerce.number().parse("7"),
    demo: await Deno.readTextFile(programFile("configs/demo.yaml")),
    lazy: (await import("./lazy.ts")).lazy,
  }));
  await Deno.writeTextFile("result.txt", "written where the user stands");
  Deno.exitCode = Number(rest[0] ?? 0);
}
if (!isMainThread) parentPort!.postMessage("worker " + workerData);
else if (import.meta.main) await start();
`;

async function withStandIn(run: (project: string, user: string) => Promise<void>): Promise<void> {
  const folder = await Deno.realPath(await Deno.makeTempDir({ prefix: "troupe compile " }));
  const [project, user] = [`${folder}/the project`, `${folder}/the user`];
  try {
    for (const path of [`${project}/src/cli`, `${project}/kernels`, `${project}/configs/demo`, user]) {
      await Deno.mkdir(path, { recursive: true });
    }
    for (const path of ["deno.json", "deno.lock", "troupe", "LICENSE", "src/cli/self.ts", "src/cli/compile.ts"]) {
      await Deno.copyFile(programFile(path), `${project}/${path}`);
    }
    await Deno.writeTextFile(`${project}/src/cli/main.ts`, standIn);
    await Deno.writeTextFile(
      `${project}/src/cli/lazy.ts`,
      `export const lazy = "lazy";\nif (import.meta.main) console.log("not the main module");`,
    );
    await Deno.writeTextFile(`${project}/kernels/add.wgsl`, "fn add() {}");
    await Deno.writeTextFile(`${project}/configs/demo.yaml`, "JOB_NAME: demo");
    await Deno.writeTextFile(`${project}/configs/demo/train.bin`, "tokens");
    await run(project, user);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

interface Result {
  code: number;
  stdout: string;
  stderr: string;
}

async function execute(command: string, args: string[], options: Deno.CommandOptions): Promise<Result> {
  const { code, stdout, stderr } = await new Deno.Command(command, { args, ...options }).output();
  return { code, stdout: new TextDecoder().decode(stdout), stderr: new TextDecoder().decode(stderr) };
}

function expected(form: string, folder: string, args: string[]) {
  return {
    args,
    form,
    folder,
    worker: "worker loader",
    child: { rest: ["a b", "$HOME"], folder },
    shader: "fn add() {}",
    number: 7,
    demo: "JOB_NAME: demo",
    lazy: "lazy",
  };
}

Deno.test("a task runs where the user stands, and finds itself, its files and its workers", () =>
  withStandIn(async (project, user) => {
    const args = ["task", "--quiet", "--config", `${project}/deno.json`, "train", "3", "it's $PATH", ""];
    const result = await execute(denoCommand(), args, {
      cwd: user,
      clearEnv: true, // INIT_CWD of the task that runs this test would be taken for the user's folder
      env: { ...kept("PATH", "HOME", "DENO_DIR", "DENO_TLS_CA_STORE"), TROUPE_WRITE: `,${user}` },
    });
    assertEquals(result.stderr, "");
    assertEquals(JSON.parse(result.stdout), expected("source", user, ["train", "3", "it's $PATH", ""]));
    assertEquals(result.code, 3);
    assertEquals(await Deno.readTextFile(`${user}/result.txt`), "written where the user stands");
  }));

Deno.test("the compiled file needs nothing else, unpacks once, and finds itself, its files and its workers", () =>
  withStandIn(async (project, user) => {
    const compiling = await execute(denoCommand(), [
      "run",
      "--quiet",
      "--no-prompt",
      "--allow-read",
      "--allow-env",
      `--allow-write=${project}/dist`,
      "--allow-run=deno,tar",
      `${project}/src/cli/compile.ts`,
      "--bundle",
    ], {});
    assertEquals([compiling.code, compiling.stderr], [0, ""]);
    assertStringIncludes(compiling.stdout, "bundle that unpacks itself");
    await Deno.rename(`${project}/dist/troupe`, `${user}/troupe`);
    // Nothing of the project is left, and no Deno is on the PATH.
    await Deno.remove(project, { recursive: true });
    const cache = `${user}/its cache`;
    const options = {
      cwd: user,
      clearEnv: true,
      env: { XDG_CACHE_HOME: cache, DENO_DIR: `${cache}/deno` },
    };
    const bin = await pathWithoutDeno(user);
    const start = (...args: string[]) =>
      execute("sh", ["-c", 'PATH=$0 exec "$@"', bin, `${user}/troupe`, ...args], options);

    const unpacked = () => [...Deno.readDirSync(`${cache}/troupe`)].map(({ name }) => name);
    const both = await Promise.all([start("train", "3", "it's $PATH"), start("train", "4")]);
    assertEquals(both.map(({ code, stderr }) => [code, stderr]), [[3, ""], [4, ""]]);
    assertEquals(JSON.parse(both[0].stdout), expected("bundle", user, ["train", "3", "it's $PATH"]));
    assertEquals(await Deno.readTextFile(`${user}/result.txt`), "written where the user stands");
    const [app, ...others] = unpacked();
    assert(app.startsWith("app-") && others.length === 0, [app, ...others].join());
    assertEquals([...Deno.readDirSync(`${cache}/troupe/${app}`)].map(({ name }) => name).sort(), [
      "LICENSE",
      "app.js",
      "configs",
      "deno",
    ]);

    assertEquals((await start("train")).code, 0);
    assertEquals(unpacked(), [app]);

    // A file that was cut short says so instead of unpacking half of it.
    await Deno.remove(`${cache}/troupe`, { recursive: true });
    await Deno.truncate(`${user}/troupe`, 1_000_000);
    const cut = await start("train");
    assertEquals(cut.code, 1);
    assertStringIncludes(cut.stderr, "was cut short");
    await assertRejects(() => Deno.stat(`${cache}/troupe`), Deno.errors.NotFound);
  }));

/** These variables of this process, where they are set. */
function kept(...names: string[]): Record<string, string> {
  return Object.fromEntries(names.flatMap((name) => {
    const value = Deno.env.get(name);
    return value === undefined ? [] : [[name, value]];
  }));
}

/** A PATH with the tools that are everywhere, and nothing else. */
async function pathWithoutDeno(folder: string): Promise<string> {
  const bin = `${folder}/bin`;
  await Deno.mkdir(bin);
  for (const tool of ["sh", "tail", "tar", "gzip", "wc", "mkdir", "mktemp", "mv", "rm"]) {
    await Deno.writeTextFile(`${bin}/${tool}`, `#!/bin/sh\nexec /usr/bin/env -i PATH=/usr/bin:/bin ${tool} "$@"\n`);
    await Deno.chmod(`${bin}/${tool}`, 0o755);
  }
  return bin;
}

Deno.test("stub() says where to unpack where nothing says so", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await Deno.writeTextFile(`${folder}/troupe`, stub("0", 0));
    const start = (env: Record<string, string>) =>
      execute("sh", [`${folder}/troupe`], { clearEnv: true, env: { ...kept("PATH"), ...env } });
    assertStringIncludes((await start({})).stderr, "set HOME or XDG_CACHE_HOME");
    assertStringIncludes((await start({ XDG_CACHE_HOME: "/a,b" })).stderr, "comma");
    assertStringIncludes((await start({ XDG_CACHE_HOME: "/proc/none" })).stderr, "cannot write to /proc/none");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("permissionFlags() grants what is named and nothing else", () => {
  assertEquals(permissionFlags({}), []);
  assertEquals(permissionFlags({ read: true, write: ["a", "b c"], net: [], sys: ["hostname"] }), [
    "--allow-read",
    "--allow-write=a,b c",
    "--allow-sys=hostname",
  ]);
  assertThrows(() => permissionFlags({ write: ["a,b"] }), RangeError, '"a,b"');
});
