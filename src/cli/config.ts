/** `troupe config`: the fields of a run record, or one record complete. */
import { configHelp, printResolved } from "../config/mod.ts";
import { getDefaultParser } from "./parser.ts";
import { recordFromArguments, type Verb } from "./verb.ts";

const summary = "print a run record complete, or what every field means (--help)";

export const config: Verb = {
  summary,
  async run(args) {
    const parser = getDefaultParser().addArgument("file", { nargs: "?", help: "Run record; same as --config" });
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("config", summary));
      console.log(configHelp());
      return 0;
    }
    const file = (parsed.file as string | undefined) ?? parsed.config;
    const record = await recordFromArguments({ ...parsed, config: file });
    console.log(parsed.json ? JSON.stringify(record) : printResolved(record));
    return 0;
  },
};
