/** `troupe verify DIR...`: replays reference trainings and says how far this machine strays from them. */
import { existsSync } from "node:fs";
import type { Backend } from "../backend/backend.ts";
import { openBackend } from "../backend/open.ts";
import { ConfigError } from "../config/mod.ts";
import { caseOf, defaultTolerances, verify as replay, type VerifyReport } from "../train/verify.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { requireRoomForRanks } from "./room_for_ranks.ts";
import { say, type Verb } from "./verb.ts";
import { isOneOfSeveral, type OneOfSeveral, oneOfSeveral, verifyWithRanks } from "./verify_ranks.ts";

const summary = "replay reference trainings and report how far this machine strays from them";

interface VerifyArguments extends ParsedArguments {
  readonly folder: readonly string[];
  readonly backend: "webgpu" | "cpu";
  readonly nproc: number;
  readonly set: readonly string[];
  readonly json: boolean;
  readonly help: boolean;
  readonly loss_tolerance: number | undefined;
  readonly grad_norm_tolerance: number | undefined;
  readonly logit_tolerance: number | undefined;
  readonly param_norm_tolerance: number | undefined;
}

function makeParser() {
  const tolerance = (what: string, standard: number) => (
    { type: "float", help: `${what}; ${standard} in float32, more in a half type` } as const
  );
  return createParser<VerifyArguments>()
    .addArgument("folder", { nargs: "*", help: "Folders, each with config.json, model.safetensors and curve.json" })
    .addArgument("--backend", { choices: ["webgpu", "cpu"], default: "webgpu", help: "What computes" })
    .addArgument("--nproc", { type: "int", default: 1, help: "Ranks on this machine" })
    .addArgument("--set", { repeat: true, help: "Change a field of the run record: section.field=value" })
    .addArgument("--json", { type: "flag", help: "Standard output carries a line of JSON for each folder" })
    .addArgument("--loss_tolerance", tolerance("Largest error of a loss", defaultTolerances.loss))
    .addArgument(
      "--grad_norm_tolerance",
      tolerance("Largest relative error of a gradient norm", defaultTolerances.gradNorm),
    )
    .addArgument("--logit_tolerance", tolerance("Largest error of the first logits", defaultTolerances.logits))
    .addArgument(
      "--param_norm_tolerance",
      tolerance("Largest relative error of a final weight's norm", defaultTolerances.paramNorm),
    );
}

export const verify: Verb = {
  summary,
  async run(args) {
    const parser = makeParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("verify", summary));
      return 0;
    }
    const { nproc, folder: folders } = parsed;
    if (folders.length === 0) {
      throw new ArgumentError(
        "folder is missing: one or more, each with config.json, model.safetensors and curve.json",
      );
    }
    for (const folder of folders) {
      if (existsSync(`${folder}/curve.json`)) continue;
      throw new ArgumentError(
        `folder: there is no ${folder}/curve.json; a reference training has config.json, model.safetensors and curve.json`,
      );
    }
    if (!(nproc >= 1)) throw new ArgumentError(`--nproc: ${nproc} ranks verify nothing; 1 or more would work`);
    if (nproc > 1 && !isOneOfSeveral()) {
      requireRoomForRanks(nproc);
      return await verifyWithRanks(args, nproc);
    }
    await using member = nproc > 1 ? oneOfSeveral() : undefined;
    using backend = await openBackend(parsed.backend, { boundsChecks: false });
    let code = 0;
    for (const folder of folders) {
      try {
        if (!await verifyOne(folder, parsed, backend, member)) code = 1;
      } catch (error) {
        // A record that does not fit a model is refused by all ranks alike, before any of them waits for another.
        if (!(error instanceof ConfigError) || folders.length === 1) throw error;
        code ||= 2;
        if (!tells(member)) continue;
        say(`${folder}: ${error.message}`);
        if (parsed.json) console.log(JSON.stringify({ case: caseOf(folder), refused: error.message }));
      }
    }
    // The others came to the same as the one that tells: it must not be ended for them before it has told.
    return tells(member) ? code : 0;
  },
};

type ReportedTie = NonNullable<VerifyReport["tie"]>;

const tells = (member: OneOfSeveral | undefined): boolean => (member?.rank ?? 0) === 0;

async function verifyOne(
  folder: string,
  parsed: VerifyArguments,
  backend: Backend,
  member: OneOfSeveral | undefined,
): Promise<boolean> {
  const { nproc } = parsed;
  if (tells(member)) say(`${folder} on ${nproc > 1 ? `${nproc} ranks, each on ` : ""}${backend.traits.description}`);
  let limits = defaultTolerances;
  const report = await replay(folder, {
    backend,
    nproc,
    ...(member ? { world: member.world } : {}),
    set: parsed.set,
    tolerances: {
      ...(parsed.loss_tolerance !== undefined && { loss: parsed.loss_tolerance }),
      ...(parsed.grad_norm_tolerance !== undefined && { gradNorm: parsed.grad_norm_tolerance }),
      ...(parsed.logit_tolerance !== undefined && { logits: parsed.logit_tolerance }),
      ...(parsed.param_norm_tolerance !== undefined && { paramNorm: parsed.param_norm_tolerance }),
    },
    onStart: (tolerances) => limits = tolerances,
    onStep: ({ step, steps, loss, expected }) =>
      tells(member) && say(`step ${step + 1}/${steps}  loss ${loss.toFixed(6)}  reference ${expected.toFixed(6)}`),
    onTie: ({ step, experts: [chosen, other] }) =>
      tells(member) &&
      say(`step ${step} hangs on a tie of experts ${chosen} and ${other}: replayed with the other one`),
  });
  if (!tells(member)) return report.pass;
  if (parsed.json) {
    console.log(JSON.stringify(report));
    return report.pass;
  }
  const rows: [string, number, number][] = [
    ["loss", report.maxLossError, limits.loss],
    ["grad norm (relative)", report.maxGradNormRelError, limits.gradNorm],
    ["first logits", report.maxFirstLogitError, limits.logits],
    ["final weight norms (relative)", report.maxParamNormRelError, limits.paramNorm],
  ];
  console.log(
    `${report.case}: ${report.pass ? "pass" : "FAIL"}, ${report.steps} steps on ${report.backend}${
      nproc > 1 ? `, ${nproc} ranks` : ""
    }`,
  );
  for (const [what, error, limit] of rows) {
    const mark = error <= limit ? "" : "  <-- too large";
    console.log(`  ${what.padEnd(30)} ${error.toExponential(2)}  (limit ${limit.toExponential(0)})${mark}`);
  }
  if (report.tie) console.log(tieText(report.tie));
  return report.pass;
}

/** What a tie of two experts means for who reads that this machine has failed. */
function tieText({ step, layer, microBatch, token, experts, apart, size, lossErrors, otherwise }: ReportedTie): string {
  const short = (value: number) => value.toExponential(1), [chosen, other] = experts, [before, from] = lossErrors;
  const result = `loss ${short(otherwise.maxLossError)}, gradient norm ${short(otherwise.maxGradNormRelError)}`;
  return [
    `step ${step} hangs on a tie: token ${token} of micro-batch ${microBatch} goes to expert ${chosen} of layers.${layer} and ` +
    `not to ${other}, whose scores are ${short(apart)} apart (the largest is ${
      short(size)
    }), which is float32's rounding.`,
    `Losses are off by ${short(before)} at most before that step, by ${short(from)} from it on.`,
    otherwise.pass
      ? `With expert ${other} for that one token a second replay is within all limits (${result}): the reference will have chosen it.`
      : `With expert ${other} for that one token a second replay is beyond them too (${result}): that is not all of it.`,
  ].map((line) => `  ${line}`).join("\n");
}
