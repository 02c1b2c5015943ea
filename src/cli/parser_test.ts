import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ArgumentError, createParser, getDefaultParser, recordChanges } from "./parser.ts";

function refusal(args: string[], parser = getDefaultParser()): string {
  return assertThrows(() => parser.parse(args), ArgumentError).message;
}

Deno.test("getDefaultParser() has InternEvo's arguments with their defaults", () => {
  const args = getDefaultParser().parse([]);
  assertEquals(
    [args.config, args.launcher, args.host, args.port, args.world_size, args.rank, args.local_rank, args.backend],
    [undefined, "slurm", undefined, 8888, undefined, undefined, undefined, undefined],
  );
  assertEquals([args.seed, args.profiling, args.enable_ali_topology, args.disable_volc_topology], [
    1024,
    false,
    false,
    false,
  ]);
  assertEquals(args.given.size, 0);
});

Deno.test("parse() reads values after a space or an equals sign, with dashes or underscores", () => {
  const args = getDefaultParser().parse(["--config", "a.yaml", "--world-size=4", "--local_rank", "2", "--profiling"]);
  assertEquals([args.config, args.world_size, args.local_rank, args.profiling], ["a.yaml", 4, 2, true]);
  assertEquals([...args.given].sort(), ["config", "local_rank", "profiling", "world_size"]);
});

Deno.test("parse() collects every --set in order and keeps equals signs in values", () => {
  const args = getDefaultParser().parse(["--set", "a.b=c=d", "--set=e.f=8/3"]);
  assertEquals(args.set, ["a.b=c=d", "e.f=8/3"]);
});

Deno.test("parse() takes the last of an argument given twice", () => {
  assertEquals(getDefaultParser().parse(["--port", "1", "--port", "2"]).port, 2);
});

Deno.test("addArgument() declares arguments of the user's own", () => {
  const parser = getDefaultParser();
  parser.addArgument("--user_arg", { type: "int", default: -1, help: "mine" });
  assertEquals(parser.parse([]).user_arg, -1);
  assertEquals(parser.parse(["--user_arg", "-7"]).user_arg, -7);
  assertThrows(() => parser.addArgument("--seed"), TypeError, "declared already");
});

Deno.test("addArgument() without dashes takes words by place", () => {
  const parser = createParser().addArgument("dir", { help: "the folder" }).addArgument("files", { nargs: "*" });
  const args = parser.parse(["golden", "1", "2"]);
  assertEquals([args.dir, args.files], ["golden", ["1", "2"]]);
  assertStringIncludes(refusal([], parser as never), "dir is missing: the folder");
  assertEquals(parser.parse(["--help"]).help, true);
});

Deno.test("parse() keeps words that begin with a dash after --", () => {
  const parser = createParser().addArgument("files", { nargs: "*" });
  assertEquals(parser.parse(["--", "--odd", "-x"]).files, ["--odd", "-x"]);
});

Deno.test("parse() names the nearest argument to an unknown one", () => {
  assertStringIncludes(refusal(["--confg", "x"]), "--config is the nearest");
  assertStringIncludes(refusal(["--worldsize=3"]), "--world_size is the nearest");
  assertStringIncludes(refusal(["--completely-else"]), "the arguments are");
  assertStringIncludes(refusal(["-n", "3"]), "no argument -n");
});

Deno.test("parse() refuses missing values, bad numbers and bad choices", () => {
  assertStringIncludes(refusal(["--config"]), "--config needs a value");
  assertStringIncludes(refusal(["--config", "--json"]), "saw --json");
  assertStringIncludes(refusal(["--config="]), "--config needs a value");
  assertStringIncludes(refusal(["--port", "8e3"]), `"8e3" is not a whole number; --port 8888 would work`);
  assertStringIncludes(refusal(["--launcher", "slurn"]), "slurm is the nearest");
  assertStringIncludes(refusal(["--profiling=3"]), "takes no value");
  assertStringIncludes(refusal(["stray"]), `"stray" is not understood`);
});

Deno.test("help() lists every argument of a verb, aligned and no wider than 100", () => {
  const parser = getDefaultParser().addArgument("--steps", { type: "int", verbs: ["bench"], help: "how many" });
  const lines = parser.help("train", "Trains a model.").split("\n");
  assert(lines.every((line) => line.length <= 100));
  assertStringIncludes(lines[0], "troupe train");
  const column = (text: string) => lines.find((line) => line.includes(text))!.indexOf(text);
  assertEquals(column("Run record"), column("Port of the root"));
  assert(!lines.some((line) => line.includes("--steps")));
  assertStringIncludes(parser.help("bench"), "--steps N");
});

Deno.test("recordChanges() turns arguments into changes of the record, the user's own last", () => {
  const notices: string[] = [];
  const parse = (...args: string[]) => recordChanges(getDefaultParser().parse(args), (line) => notices.push(line));
  assertEquals(parse(), []);
  assertEquals(
    parse("--set", "runtime.seed=5", "--seed", "3", "--nproc", "2", "--backend", "cpu", "--resume"),
    ["runtime.nproc=2", "runtime.backend=cpu", "runtime.seed=3", "ckpt.auto_resume=true", "runtime.seed=5"],
  );
  assertEquals(notices, []);
  assertEquals(parse("--backend", "nccl"), []);
  assertEquals(notices.length, 1);
});
