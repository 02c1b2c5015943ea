/** `troupe plan`: what a run would hold in device memory, without a device. */
import { openNullBackend } from "../backend/null/backend.ts";
import { formatBytes } from "../observe/format.ts";
import { singleRank } from "../parallel/mesh.ts";
import { planModel } from "../train/model.ts";
import { elementCount } from "../graph/graph.ts";
import { getDefaultParser } from "./parser.ts";
import { recordFromArguments, type Verb } from "./verb.ts";

const summary = "estimate the device memory that a run needs, without a device";

export const plan: Verb = {
  summary,
  async run(args) {
    const parser = getDefaultParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("plan", summary));
      return 0;
    }
    const config = await recordFromArguments(parsed);
    using backend = openNullBackend();
    const { memory, plan } = planModel(config, backend.traits, singleRank);
    const parameters = plan.parameters.reduce((sum, { shape }) => sum + elementCount(shape), 0);
    if (parsed.json) {
      console.log(JSON.stringify({ parameters, memory }));
      return 0;
    }
    console.log(`${config.JOB_NAME}: ${config.model_type}, ${parameters.toLocaleString("en")} parameters`);
    for (const [name, bytes] of Object.entries(memory)) {
      console.log(`  ${name.padEnd(12)} ${formatBytes(bytes).padStart(10)}`);
    }
    const dispatches = [plan.segments["forward 0"], plan.segments["backward 0"]]
      .reduce((sum, { instructions }) => sum + instructions.length, 0);
    console.log(
      `  ${dispatches} instructions a micro-batch, ${config.data.micro_num} micro-batch${
        config.data.micro_num === 1 ? "" : "es"
      } and 1 read-back a step`,
    );
    return 0;
  },
};
