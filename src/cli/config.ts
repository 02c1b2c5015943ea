/** `troupe config`: the fields of a run record, or one record complete. */
import { configHelp, printResolved } from "../config/mod.ts";
import { getRecordParser, recordFromArguments, type Verb } from "./verb.ts";

const summary = "print a run record complete, or what every field means (--help)";

export const config: Verb = {
  summary,
  async run(args) {
    const parser = getRecordParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("config", summary));
      console.log(configHelp());
      return 0;
    }
    const record = await recordFromArguments(parsed);
    console.log(parsed.json ? JSON.stringify(record) : printResolved(record));
    return 0;
  },
};
