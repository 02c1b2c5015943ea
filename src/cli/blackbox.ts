/** `troupe blackbox`: what the ranks of a run did last, before an accident or now, as one story. */
import { type BlackBoxContent, formatStory } from "../observe/black_box.ts";
import { runFolderAt } from "../observe/run_folder.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { say, type Verb } from "./verb.ts";

const summary = "tell what the ranks of a run did last: who waited for whom";

interface BlackBoxArguments extends ParsedArguments {
  readonly folder: string | undefined;
  readonly lines: number;
  readonly json: boolean;
  readonly help: boolean;
}

const makeParser = () =>
  createParser<BlackBoxArguments>()
    .addArgument("folder", {
      nargs: "?",
      help: "Folder of the run, such as RUN/demo/01-31-09.05.07; the newest below RUN",
    })
    .addArgument("--lines", { type: "int", default: 60, help: "Records to print, the last ones" })
    .addArgument("--json", { type: "flag", help: "Print everything as one line of JSON" });

export const blackbox: Verb = {
  summary,
  async run(args) {
    const parser = makeParser(), parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("blackbox", summary));
      return 0;
    }
    if (parsed.lines < 1) throw new ArgumentError(`--lines: ${parsed.lines} is not above 0`);
    const folder = parsed.folder ?? newestRun("RUN");
    if (folder === undefined) {
      say("troupe blackbox: there is no run below RUN; the folder of one would work");
      return 1;
    }
    if (!isFolder(folder)) throw new ArgumentError(`there is no folder ${folder}; a run's own below RUN would work`);
    const run = runFolderAt(folder.replace(/\/+$/, "")), before = written(run.blackBox);
    if (isRunning(run.path)) {
      try {
        Deno.writeTextFileSync(run.blackBoxRequest, "");
        // The root looks every half second.
        for (let tries = 0; tries < 40 && written(run.blackBox) === before; tries++) {
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      } catch (error) {
        say(`The run cannot be asked: ${(error as Error).message.split(",")[0]}`);
      }
    }
    if (written(run.blackBox) === undefined) {
      say(`troupe blackbox: ${run.path} has no black box: nothing happened to the run, and it does not run now`);
      return 1;
    }
    const text = Deno.readTextFileSync(run.blackBox);
    let content: BlackBoxContent;
    try {
      content = JSON.parse(text) as BlackBoxContent;
    } catch (error) {
      throw new Error(`Cannot read ${run.blackBox}, which is cut off or altered: ${(error as Error).message}`);
    }
    console.log(parsed.json ? text.trim() : formatStory(content, parsed.lines));
    return 0;
  },
};

function written(path: string): number | undefined {
  try {
    return Deno.statSync(path).mtime?.getTime();
  } catch {
    return undefined; // there is none
  }
}

function isFolder(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false; // absent, or nobody may look
  }
}

/** Whether a run has ranks; its root takes the list away when it ends in good order. */
function isRunning(path: string): boolean {
  try {
    return (JSON.parse(Deno.readTextFileSync(`${path}/ranks.json`)) as { ranks: unknown[] }).ranks.length > 0;
  } catch {
    return false;
  }
}

/** The run's folder whose records changed last. */
function newestRun(root: string): string | undefined {
  const folders = (path: string) => {
    try {
      return [...Deno.readDirSync(path)].filter(({ isDirectory }) => isDirectory).map(({ name }) => `${path}/${name}`);
    } catch {
      return [];
    }
  };
  const newest = folders(root).flatMap(folders)
    .map((path) => ({ path, at: written(`${path}/ranks.json`) ?? 0 })).sort((a, b) => b.at - a.at)[0];
  return newest?.path;
}
