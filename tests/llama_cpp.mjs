// A real llama.cpp (npm's node-llama-cpp) on token ids: reads a job as JSON on stdin, prints its result as JSON.
//
// job: {package: folder of node-llama-cpp, model: FILE.gguf, adapter: FILE.gguf or null, scales: [number],
//       sequences: [{tokens: [id], prompt: n}], whole: boolean, generate: {prompts: [[id]], count}, texts: [text]}
// result: {scales: [{sequences: [[step]], generated: [[id]], tokenized: [[id]]}]}; a step for each token after the prompt:
//   {best: id, bestLogp, nextLogp, secondLogp} and, with whole, logp: [of every id]. Natural logarithms.
import path from "node:path";
import {pathToFileURL} from "node:url";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const job = JSON.parse(Buffer.concat(chunks).toString());
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(path.join(job.package, "dist", "index.js")));
const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath: job.model});
const plain = {temperature: 1, topK: 0, topP: 1, minP: 0}; // probabilities of the model, without any cut

function step(next, token, whole) {
    const all = next.probabilities;
    // llama.cpp adds up its probabilities in float32 from the largest down, which loses the smallest: over 49,152 tokens
    // the sum of what it gives is above 1 by some ten-thousandths.
    let total = 0;
    for (const probability of all.values()) total += probability;
    const logp = (probability) => Math.log(probability / total);
    const [[best, first], [, second]] = [...all.entries()].slice(0, 2);
    const found = {best, bestLogp: logp(first), nextLogp: logp(all.get(token)), secondLogp: logp(second)};
    if (whole) {
        found.logp = new Array(all.size);
        for (const [id, probability] of all) found.logp[id] = logp(probability);
    }
    return found;
}

const scales = [];
for (const scale of job.scales) {
    const context = await model.createContext({
        contextSize: 512,
        batchSize: 512,
        threads: 1,
        flashAttention: false,
        experimentalKvCacheKeyType: "F32", // F16 by default, which alone moves log-probabilities by a thousandth
        experimentalKvCacheValueType: "F32",
        lora: job.adapter == null ? undefined : {adapters: [{filePath: job.adapter, scale}]}
    });
    const sequence = context.getSequence();
    const tokenized = (job.texts ?? []).map((text) => model.tokenize(text, true)); // with control tokens
    const result = {sequences: [], generated: [], tokenized};
    for (const {tokens, prompt} of job.sequences ?? []) {
        await sequence.clearHistory();
        const inputs = tokens.slice(0, -1).map((token, place) =>
            (place < prompt - 1 ? token : [token, {generateNext: {probabilities: true, options: plain}}]));
        const outputs = await sequence.controlledEvaluate(inputs);
        result.sequences.push(outputs.slice(prompt - 1).map((output, place) =>
            step(output.next, tokens[prompt + place], job.whole)));
    }
    for (const prompt of job.generate?.prompts ?? []) {
        await sequence.clearHistory();
        const answer = [];
        for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
            answer.push(token);
            if (answer.length >= job.generate.count || model.isEogToken(token)) break;
        }
        result.generated.push(answer);
    }
    scales.push(result);
    await context.dispose();
}
process.stdout.write(JSON.stringify({scales}) + "\n", () => process.exit(0)); // after a pipe has taken all of it
