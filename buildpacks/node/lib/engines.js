// Prints `node-20`, or says why the app's engines.node does not fit the Node.js of this machine.
'use strict';
const fs = require('fs');

function fail(message) {
  console.error(message);
  process.exit(1);
}

function numbers(text) {
  return text.split('.').map((part) => (/^\d+$/.test(part) ? Number(part) : null));
}

// compares as far as the bound goes: 20.3.1 against 20 is 0
function compare(here, bound) {
  for (let index = 0; index < bound.length && bound[index] !== null; index += 1) {
    if (here[index] !== bound[index]) return here[index] - bound[index];
  }
  return 0;
}

function satisfies(here, comparator) {
  const match = /^(>=|<=|>|<|=|\^|~)?v?(\d+(?:\.(?:\d+|x|\*))*)(?:-\S+)?$/.exec(comparator);
  if (!match) return true; // `*`, `lts/*`, tags: not ours to judge
  const bound = numbers(match[2]);
  const order = compare(here, bound);
  switch (match[1]) {
    case '>=': return order >= 0;
    case '<=': return order <= 0;
    case '>': return order > 0;
    case '<': return order < 0;
    case '^': return order >= 0 && here[0] === bound[0];
    case '~': return order >= 0 && compare(here, bound.slice(0, 2)) === 0;
    default: return order === 0;
  }
}

function fits(here, range) {
  return range.split('||').some((part) => {
    const words = part.replace(/(>=|<=|>|<|=|\^|~)\s+/g, '$1').trim().split(/\s+/).filter(Boolean);
    if (words.length === 3 && words[1] === '-') {
      return satisfies(here, '>=' + words[0]) && satisfies(here, '<=' + words[2]);
    }
    return words.every((word) => satisfies(here, word));
  });
}

let project = {};
if (fs.existsSync('package.json')) {
  try {
    project = JSON.parse(fs.readFileSync('package.json', 'utf8'));
  } catch (error) {
    fail(`package.json is not valid JSON: ${error.message}`);
  }
}
const wanted = (project.engines && project.engines.node) ||
  (fs.existsSync('.nvmrc') && fs.readFileSync('.nvmrc', 'utf8').trim()) || '';
const here = process.versions.node;
if (wanted && !fits(numbers(here), String(wanted))) {
  fail(`the app asks for Node.js '${wanted}'; this machine has ${here}`);
}
console.log(`node-${here.split('.')[0]}`);
