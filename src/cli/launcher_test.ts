import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { programFile } from "./self.ts";

const decoder = new TextDecoder();

interface Stage {
  /** Starts the launcher in the user's folder, with only the stage's programs on the PATH. */
  start(args: string[], env?: Record<string, string>): Promise<{ code: number; stdout: string; stderr: string }>;
  /** Puts a program on the PATH. */
  program(name: string, script: string): Promise<void>;
  readonly user: string;
  readonly cache: string;
}

const realDeno = Deno.execPath();

/** A project of one verb, a user who stands elsewhere and starts it through a link, and an empty cache. */
async function withStage(run: (stage: Stage) => Promise<void>): Promise<void> {
  const folder = await Deno.realPath(await Deno.makeTempDir({ prefix: "troupe launcher " }));
  const [project, user, bin, cache] = ["the project", "the user", "bin", "the cache"].map((name) =>
    `${folder}/${name}`
  );
  try {
    for (const path of [project, user, bin]) await Deno.mkdir(path);
    await Deno.copyFile(programFile("troupe"), `${project}/troupe`);
    await Deno.writeTextFile(`${user}/start`, `#!/bin/sh\nPATH='${bin}' exec '${project}/troupe' "$@"\n`);
    await Deno.chmod(`${user}/start`, 0o755);
    await Deno.writeTextFile(
      `${project}/deno.json`,
      `{\n  "tasks": {\n    "loud_one": "LOUD=1 deno run --quiet --no-prompt --allow-read --allow-env show.ts",\n` +
        `    "show": "deno run --quiet --no-prompt --allow-read --allow-env show.ts",\n` +
        `    "help": "deno run --quiet --no-prompt --allow-read --allow-env show.ts 'for help'"\n  }\n}\n`,
    );
    await Deno.writeTextFile(
      `${project}/show.ts`,
      `const { args, execPath, env } = Deno;
       console.log(JSON.stringify({ args, deno: execPath(), user: env.get("INIT_CWD"), write: env.get("TROUPE_WRITE") }));
       Deno.exitCode = args.length;`,
    );
    const program = async (name: string, script: string) => {
      await Deno.writeTextFile(`${bin}/${name}`, `#!/bin/sh\n${script}\n`);
      await Deno.chmod(`${bin}/${name}`, 0o755);
    };
    // What is on every machine, and nothing else.
    for (const name of tools) {
      await program(name, `for p in /usr/bin /bin; do [ -x $p/${name} ] && exec $p/${name} "$@"; done`);
    }
    const start = async (args: string[], env: Record<string, string> = {}) => {
      const { code, stdout, stderr } = await new Deno.Command("sh", {
        args: ["-c", 'exec ./start "$@"', "sh", ...args],
        cwd: user,
        env: { XDG_CACHE_HOME: cache, TROUPE_WRITE: "", INIT_CWD: "/another/program", ...env },
      }).output();
      return { code, stdout: decoder.decode(stdout), stderr: decoder.decode(stderr) };
    };
    await run({ start, program, user, cache: `${cache}/troupe` });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const tools = [
  "sh",
  "dirname",
  "readlink",
  "sed",
  "sort",
  "head",
  "grep",
  "mkdir",
  "mktemp",
  "mv",
  "rm",
  "cat",
  "uname",
];

const show = (result: { stdout: string }) => JSON.parse(result.stdout);

Deno.test("troupe passes arguments, the user's folder and the exit code on", () =>
  withStage(async ({ start, program, user }) => {
    await program("deno", `exec '${realDeno}' "$@"`);
    const args = ["a b", "it's $HOME", "*", "--set", "x=\\"];
    const result = await start(["show", ...args]);
    assertEquals(result.stderr, "");
    assertEquals(show(result), { args, deno: realDeno, user, write: `,${user}` });
    assertEquals(result.code, args.length);
    assertEquals(show(await start(["loud_one", "x"])).args, ["x"]); // a task that begins with a variable
  }));

Deno.test("troupe hands what is no verb to help, which tells the nearest", () =>
  withStage(async ({ start, program }) => {
    await program("deno", `exec '${realDeno}' "$@"`);
    for (const verb of ["shw", "-x", "sho.", "a b", "it's"]) {
      const result = await start([verb, "more"]);
      assertEquals([show(result).args, result.code], [["for help", verb], 2]);
    }
  }));

Deno.test("troupe without Deno and npm says what is needed", () =>
  withStage(async ({ start, program }) => {
    const { code, stderr } = await start(["show"]);
    assertEquals(code, 1);
    assertMatch(stderr, /^troupe: Deno [\d.]+ is needed; install it, or Node\.js with npm/);
    await program("deno", "echo 'deno 2.1.10 (stable, release)'");
    assertStringIncludes((await start(["show"])).stderr, "the deno on the PATH is 2.1.10");
  }));

/** Does what npm does to the folder that it is given, with the Deno that is here. */
const npm = `while [ "$1" != --prefix ]; do shift; done
mkdir -p "$2/node_modules/@deno/here" && echo >>"$LOG" && cat '${realDeno}' >"$2/node_modules/@deno/here/deno"
/bin/chmod 755 "$2/node_modules/@deno/here/deno"`;

// Two `deno task` at the same moment can make Deno 2.9.6 itself panic (task_runner.rs:364, seen once): hence the retry,
// which the runner reports.
Deno.test(
  "troupe fetches Deno once, beside an older one, however many start at once",
  { retry: 2 },
  () =>
    withStage(async ({ start, program, user, cache }) => {
      await program("deno", "echo 'deno 1.46.3 (stable, release)'");
      await program("npm", npm);
      const env = { LOG: `${user}/log` };
      const both = await Promise.all([start(["show"], env), start(["show"], env)]);
      for (const result of both) {
        assertEquals(result.code, 0, result.stderr);
        assertMatch(show(result).deno, /\/the cache\/troupe\/deno-[\d.]+\/deno$/);
      }
      const fetched = await Deno.readTextFile(env.LOG);
      const again = await start(["show"], env);
      assertEquals([again.code, again.stderr.includes("fetching")], [0, false]);
      assertEquals(await Deno.readTextFile(env.LOG), fetched);
      assertMatch([...Deno.readDirSync(cache)].map(({ name }) => name).join(), /^deno-[\d.]+$/);
    }),
);

Deno.test("troupe passes on why npm failed, and leaves nothing behind", () =>
  withStage(async ({ start, program, cache }) => {
    await program("npm", "echo 'the registry is away'; exit 1");
    const { code, stderr } = await start(["show"]);
    assertEquals(code, 1);
    assertStringIncludes(stderr, "the registry is away");
    assertStringIncludes(stderr, "is the network there?");
    assertEquals([...Deno.readDirSync(cache)], []);
  }));

Deno.test("troupe steps over npm's script that only starts Deno", () =>
  withStage(async ({ start, program, user }) => {
    // As npm installs it: a link on the PATH to the script beside the binary.
    await Deno.mkdir(`${user}/package`);
    await Deno.writeTextFile(`${user}/package/bin.cjs`, "#!/bin/sh\nexit 9\n");
    await Deno.writeTextFile(`${user}/package/deno`, `#!/bin/sh\nexec '${realDeno}' "$@"\n`);
    for (const name of ["bin.cjs", "deno"]) await Deno.chmod(`${user}/package/${name}`, 0o755);
    await program("readlink", `case "$*" in *deno) echo '${user}/package/bin.cjs' ;; *) exit 1 ;; esac`);
    await program("deno", "exit 9");
    assertEquals((await start(["show"])).code, 0);
  }));
