// Renders /v1/openapi.json. Text goes into the page as text only, never as markup.
'use strict';

const page = document.getElementById('page');
const state = document.getElementById('state');

function add(parent, tag, text, attributes) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

// The name of what a schema refers to, as a link; else its type.
function type(parent, schema) {
  if (!schema) return;
  if (schema.$ref) {
    const name = schema.$ref.split('/').pop();
    add(add(parent, 'code'), 'a', name, { href: '#schema-' + name });
  } else if (schema.type === 'array') {
    add(parent, 'span', 'list of ');
    type(parent, schema.items);
  } else if (schema.const !== undefined) {
    add(parent, 'code', JSON.stringify(schema.const));
  } else if (schema.enum) {
    add(parent, 'code', schema.enum.map((value) => JSON.stringify(value)).join(' | '));
  } else if (schema.anyOf || schema.oneOf) {
    (schema.anyOf || schema.oneOf).forEach((choice, index) => {
      if (index) add(parent, 'span', ' or ');
      type(parent, choice);
    });
  } else {
    add(parent, 'code', [].concat(schema.type || 'any').join(' or '));
  }
}

function table(parent, header, rows) {
  const all = add(parent, 'table');
  const head = add(all, 'tr');
  header.forEach((text) => add(head, 'th', text));
  rows.forEach((fill) => fill(add(all, 'tr')));
}

function operation(parent, path, method, it) {
  const section = add(parent, 'section', undefined, { id: it.operationId });
  const title = add(section, 'h3');
  add(title, 'span', method, { class: 'method' });
  add(title, 'code', path);
  add(section, 'p', it.summary);
  if (it.parameters) {
    table(section, ['parameter', 'in', 'type', ''], it.parameters.map((param) => (row) => {
      add(add(row, 'td'), 'code', param.name);
      add(row, 'td', param.in + (param.required ? ', required' : ''));
      type(add(row, 'td'), param.schema);
      add(row, 'td', param.description || '');
    }));
  }
  if (it.requestBody) {
    for (const [kind, body] of Object.entries(it.requestBody.content)) {
      const line = add(section, 'p', 'Body: ' + kind + ' ');
      type(line, body.schema);
    }
  }
  if (it['x-websocket']) {
    const line = add(section, 'p', 'Messages: first ');
    type(line, it['x-websocket'].first);
    add(line, 'span', ', then to the daemon ');
    type(line, it['x-websocket'].toDaemon);
    add(line, 'span', ', from the daemon ');
    type(line, it['x-websocket'].fromDaemon);
  }
  table(section, ['answer', '', ''], Object.entries(it.responses).map(([status, answer]) => (row) => {
    add(row, 'td', status);
    add(row, 'td', answer.description || '');
    const cell = add(row, 'td');
    for (const [kind, content] of Object.entries(answer.content || {})) {
      add(cell, 'span', kind + ' ');
      type(cell, content['x-item'] || content.schema);
      add(cell, 'br');
    }
  }));
}

function fields(parent, schema) {
  table(parent, ['field', 'type', ''], Object.entries(schema.properties).map(([name, field]) => (row) => {
    const required = (schema.required || []).includes(name);
    add(add(row, 'td'), 'code', name + (required ? '' : '?'));
    type(add(row, 'td'), field);
    add(row, 'td', field.description || '');
  }));
}

function schemas(parent, all) {
  for (const [name, schema] of Object.entries(all)) {
    const section = add(parent, 'section', undefined, { id: 'schema-' + name });
    add(add(section, 'h3'), 'code', name);
    add(section, 'p', schema.description || '');
    if (schema.properties) fields(section, schema);
    for (const choice of schema.oneOf || schema.anyOf || []) {
      const line = add(section, 'p');
      if (choice.properties) {
        add(line, 'span', choice.description || '');
        fields(section, choice);
      } else {
        type(line, choice);
        add(line, 'span', ' ' + (choice.description || ''));
      }
    }
    if (schema.enum) add(section, 'pre', schema.enum.join('\n'));
  }
}

function show(api) {
  state.textContent = api.info.description + ' Version ' + api.info.version + '. ';
  add(state, 'a', 'The document itself', { href: '/v1/openapi.json' });
  add(page, 'h2', 'Operations');
  for (const [path, item] of Object.entries(api.paths)) {
    for (const [method, it] of Object.entries(item)) operation(page, path, method, it);
  }
  add(page, 'h2', 'Problems');
  table(page, ['code', 'status', ''], api['x-problem-codes'].map((problem) => (row) => {
    row.id = 'problem-' + problem.code;
    add(add(row, 'td'), 'code', problem.code);
    add(row, 'td', String(problem.status));
    add(row, 'td', problem.title);
  }));
  add(page, 'h2', 'Types');
  schemas(page, api.components.schemas);
  // What the address points at has come only now.
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target) target.scrollIntoView();
}

fetch('/v1/openapi.json')
  .then((answer) => answer.json())
  .then(show)
  .catch((error) => { state.textContent = 'The document cannot be shown: ' + error; });
