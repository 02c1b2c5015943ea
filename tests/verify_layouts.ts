/**
 * Reference trainings on every layout of `layouts_table.ts` that fits them, by real processes of `troupe verify`, one
 * after the other. Takes hours on few cores; with `--out` it goes on where it was stopped.
 *
 *     deno task verify_layouts [FOLDER...] [--backend cpu] [--only TEXT] [--out results.jsonl]
 */
import { parseArgs } from "@std/cli";
import { goldenPath } from "./golden_dir.ts";
import { type Layout, layouts } from "./layouts_table.ts";

interface Result {
  readonly layout: string;
  readonly folder: string;
  readonly backend: string;
  readonly outcome: "pass" | "FAIL" | "does not fit";
  /** Largest error of a loss, and of a gradient norm over that norm. */
  readonly loss?: number;
  readonly gradNorm?: number;
  /** What was said where nothing was measured. */
  readonly because?: string;
}

/** A layout's settings as `--set` takes them. */
function changes({ parallel = {}, model = {}, hybrid_zero_optimizer = {} }: Layout): string[] {
  const leaves = (path: string, value: unknown): string[] =>
    typeof value === "object"
      ? Object.entries(value as Record<string, unknown>).flatMap(([key, inner]) => leaves(`${path}.${key}`, inner))
      : ["--set", `${path}=${value}`];
  return Object.entries({ parallel, model, hybrid_zero_optimizer }).flatMap(([path, value]) => leaves(path, value));
}

async function verify(layout: string, folder: string, backend: string): Promise<Result> {
  const { code, stdout, stderr } = await new Deno.Command("deno", {
    args: ["task", "--quiet", "verify", folder, "--backend", backend, "--json"]
      .concat(["--nproc", String(layouts[layout]!.ranks)], changes(layouts[layout]!)),
    stdin: "null",
  }).output();
  const text = new TextDecoder(), about = { layout, folder: folder.split("/").at(-1)!, backend };
  const report = text.decode(stdout).trim().split("\n").at(-1);
  if (report) {
    const { pass, maxLossError: loss, maxGradNormRelError: gradNorm } = JSON.parse(report);
    return { ...about, outcome: pass ? "pass" : "FAIL", loss, gradNorm };
  }
  const lines = text.decode(stderr).trim().split("\n").filter((line) => !line.startsWith("step "));
  // A record that does not fit is told before anything runs, by exit code 2.
  return {
    ...about,
    outcome: code === 2 ? "does not fit" : "FAIL",
    because: [...new Set(lines)].slice(-4).join(" | "),
  };
}

const { _: folders, backend, only, out } = parseArgs(Deno.args, {
  string: ["backend", "only", "out"],
  default: { backend: "cpu", only: "" },
}) as { _: unknown[]; backend: string; only: string; out?: string };
const all = folders.length > 0
  ? folders.map(String)
  : [...Deno.readDirSync(goldenPath("hf"))].filter((entry) => entry.isDirectory).map(({ name }) =>
    goldenPath("hf", name)
  );
const done: Result[] = [];
try {
  if (out) done.push(...Deno.readTextFileSync(out).trim().split("\n").filter(Boolean).map((line) => JSON.parse(line)));
} catch (error) {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}
/** Layouts that say something of a folder's model: one of experts says nothing of a model without. */
function layoutsOf(folder: string): string[] {
  const model = JSON.parse(Deno.readTextFileSync(`${folder}/config.json`));
  const mixture = (model.num_local_experts ?? model.num_experts ?? 1) > 1;
  return Object.keys(layouts).filter((name) =>
    name.includes(only) && (mixture || !(layouts[name]!.runs ?? []).some((run) => /mix|moe/.test(run)))
  );
}

/** Folders begin at different layouts, so that a run which is stopped early has seen every layout and every folder. */
const rows = all.map((folder) => ({ folder, layouts: layoutsOf(folder) }));
const longest = Math.max(...rows.map(({ layouts }) => layouts.length)), apart = Math.ceil(longest / rows.length);
const pairs = Array.from({ length: longest }, (_, wave) =>
  rows.flatMap(({ folder, layouts }, index) => {
    const layout = layouts[(wave + index * apart) % longest];
    return layout === undefined ? [] : [{ folder, layout }];
  })).flat();

let failed = 0;
for (const { folder, layout } of pairs) {
  const known = done.find((result) =>
    result.layout === layout && result.backend === backend && folder.endsWith(`/${result.folder}`)
  );
  const result = known ?? await verify(layout, folder, backend);
  if (!known && out) Deno.writeTextFileSync(out, `${JSON.stringify(result)}\n`, { append: true });
  if (result.outcome === "FAIL") failed++;
  const errors = result.loss === undefined
    ? result.because
    : `loss ${result.loss.toExponential(1)}, gradient norm ${result.gradNorm!.toExponential(1)}`;
  console.log(`${result.outcome}  ${result.folder} on ${layout} (${backend}): ${errors}`);
}
console.log(`${pairs.length} runs, ${failed} failed`);
Deno.exit(failed > 0 ? 1 : 0);
