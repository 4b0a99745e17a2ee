// Evaluates the requests of a run against documents of IAM: each has to be allowed, and each action
// of each document has to be needed. Which actions a request needs is said here once more, by the
// services' documentation and not by the daemon's table.
//
// Reads from standard input {documents, requests, buckets, events} and prints {evaluated, denied, needless, errors}.

import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { runSimulation } = createRequire(process.argv[2] + '/')('@cloud-copilot/iam-simulate')
// The evaluator knows no keys of an encryption context, so one that it knows stands in, here and there.
const CONTEXT = 'aws:PrincipalTag/encryption-context'
const input = readFileSync(0, 'utf8').replaceAll('kms:EncryptionContext:aws:s3:arn', CONTEXT)
const { documents, requests, buckets, events } = JSON.parse(input)

// https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
const S3 = {
  AbortMultipartUpload: () => ['s3:AbortMultipartUpload'],
  CompleteMultipartUpload: () => ['s3:PutObject'],
  CreateMultipartUpload: write,
  DeleteObject: (request) => [request.query.versionId ? 's3:DeleteObjectVersion' : 's3:DeleteObject'],
  GetBucketVersioning: () => ['s3:GetBucketVersioning'],
  GetBucketNotificationConfiguration: () => ['s3:GetBucketNotification'],
  GetObject: read,
  GetObjectLegalHold: () => ['s3:GetObjectLegalHold'],
  GetObjectLockConfiguration: () => ['s3:GetBucketObjectLockConfiguration'],
  GetObjectRetention: () => ['s3:GetObjectRetention'],
  GetObjectTagging: () => ['s3:GetObjectVersionTagging'],
  HeadBucket: () => ['s3:ListBucket'],
  HeadObject: read,
  ListMultipartUploads: () => ['s3:ListBucketMultipartUploads'],
  ListObjectVersions: () => ['s3:ListBucketVersions'],
  ListParts: () => ['s3:ListMultipartUploadParts'],
  PutObject: write,
  PutObjectTagging: () => ['s3:PutObjectVersionTagging'],
  UploadPart: () => ['s3:PutObject'],
}
const ON_BUCKETS = /^s3:(ListBucket|GetBucket)/

function read({ query, status, bucket }) {
  const actions = [query.versionId ? 's3:GetObjectVersion' : 's3:GetObject']
  // What is missing is told to those alone who may list.
  if (status === 404) actions.push('s3:ListBucket')
  // Headers that S3 leaves out of the answer to others: the count of tags, and the lock.
  if (buckets[bucket].side === 'source') {
    actions.push('s3:GetObjectVersionTagging', 's3:GetObjectRetention', 's3:GetObjectLegalHold')
  }
  return actions
}

function write({ headers }) {
  const actions = ['s3:PutObject']
  if (headers['x-amz-tagging']) actions.push('s3:PutObjectTagging')
  if (headers['x-amz-object-lock-mode']) actions.push('s3:PutObjectRetention')
  if (headers['x-amz-object-lock-legal-hold']) actions.push('s3:PutObjectLegalHold')
  if (headers['if-match']) actions.push('s3:GetObject')
  return actions
}

/** What S3 asks KMS for, on behalf of who sent the request. */
function keys({ operation, bucket, key, headers, query }) {
  const place = buckets[bucket]
  const object = `arn:aws:s3:::${bucket}/${key}`
  const at = (action, context) => ({
    action,
    resource: place.key,
    owner: place.owner,
    context: { 'kms:ViaService': `s3.${place.region}.amazonaws.com`, [CONTEXT]: context },
  })
  const isRead = operation === 'GetObject' || (operation === 'HeadObject' && headers['x-amz-checksum-mode'])
  if (place.side === 'source') {
    // A source has objects with bucket keys and without.
    return isRead ? [at('kms:Decrypt', object), at('kms:Decrypt', `arn:aws:s3:::${bucket}`)] : []
  }
  const context = place.bucketKey ? `arn:aws:s3:::${bucket}` : object
  if (headers['x-amz-server-side-encryption'] === 'aws:kms') return [at('kms:GenerateDataKey', context)]
  const isPart = operation === 'UploadPart' || operation === 'CompleteMultipartUpload'
  return isPart || isRead ? [at('kms:Decrypt', context)] : []
}

/** The single permissions that a request needs. */
function needs(request) {
  const { service, operation, bucket, key, query, identity } = request
  if (service === 'sqs') {
    const action = `sqs:${operation.replace(/Batch$/, '')}`
    return [{ identity, action, resource: request.queue, owner: request.queue.split(':')[4], context: {} }]
  }
  if (service === 'kms') {
    return [{ identity, action: `kms:${operation}`, resource: key, owner: key.split(':')[4], context: {} }]
  }
  if (service === 'sts') {
    const context = { 'sts:ExternalId': request.externalId, 'sts:RoleSessionName': request.session }
    return [{ identity, action: 'sts:AssumeRole', resource: request.role, owner: request.role.split(':')[4], context }]
  }
  const { owner } = buckets[bucket]
  const asked = S3[operation](request).map((action) => {
    const context = { 's3:ResourceAccount': owner }
    if (action === 's3:ListBucketVersions') context['s3:prefix'] = query.prefix ?? ''
    const resource = ON_BUCKETS.test(action) ? `arn:aws:s3:::${bucket}` : `arn:aws:s3:::${bucket}/${key}`
    return { action, resource, owner, context }
  })
  return [...asked, ...keys(request)].map((need) => ({ identity, ...need }))
}

/** Evaluates by the policies of the documents. */
async function evaluate(need, documents) {
  const of = (kind, name) => documents.find((one) => one.kind === kind && one.attached_to === name)?.policy
  const kinds = { s3: 'bucket-policy', sqs: 'queue-policy', kms: 'key-policy', sts: 'trust' }
  const service = need.action.split(':')[0]
  const name = service === 's3' ? need.resource.split('/')[0] : need.resource
  const isService = !need.identity.startsWith('arn:')
  const permissions = of('permissions', need.identity)
  const [account, role] = isService ? [] : [need.identity.split(':')[4], need.identity.split('/').pop()]
  const principal = isService ? need.identity : `arn:aws:sts::${account}:assumed-role/${role}/session`
  const context = isService ? need.context : { ...need.context, 'aws:PrincipalArn': need.identity }
  const simulation = {
    request: {
      principal,
      action: need.action,
      resource: { resource: need.resource, accountId: need.owner },
      contextVariables: context,
    },
    identityPolicies: permissions ? [{ name: 'permissions', policy: permissions }] : [],
    serviceControlPolicies: [],
    resourceControlPolicies: [],
    resourcePolicy: of(kinds[service], name),
  }
  const answer = await runSimulation(simulation, {})
  if (answer.resultType === 'error') return { error: answer.errors }
  // A condition on a key that the action does not have would hold for no request.
  return { isAllowed: answer.overallResult === 'Allowed', ignored: answer.result?.ignoredContextKeys ?? [] }
}

/** The documents without one action of one of them. */
function without(documents, at, action) {
  const list = (value) => (Array.isArray(value) ? value : [value])
  const changed = structuredClone(documents)
  const policy = changed[at].policy
  for (const statement of policy.Statement) {
    statement.Action = list(statement.Action).filter((one) => one !== action)
  }
  policy.Statement = policy.Statement.filter((statement) => statement.Action.length > 0)
  if (policy.Statement.length === 0) changed.splice(at, 1)
  return changed
}

const wanted = new Map()
for (const need of [...requests.flatMap(needs), ...events]) wanted.set(JSON.stringify(need), need)
const all = [...wanted.values()]
const denied = []
const errors = []
for (const need of all) {
  const { isAllowed, ignored, error } = await evaluate(need, documents)
  if (error) errors.push({ need, error })
  else if (!isAllowed) denied.push(need)
  if (ignored?.length) errors.push({ need, ignored })
}
const needless = []
let removals = 0
for (const [at, document] of documents.entries()) {
  const actions = new Set(document.policy.Statement.flatMap((statement) => statement.Action))
  for (const action of actions) {
    removals += 1
    const fewer = without(documents, at, action)
    let isNeeded = false
    for (const need of all.filter((need) => need.action === action)) {
      isNeeded ||= !(await evaluate(need, fewer)).isAllowed
      if (isNeeded) break
    }
    if (!isNeeded) needless.push(`${document.kind} of ${document.attached_to}: ${action}`)
  }
}
console.log(JSON.stringify({ evaluated: all.length, removals, denied, needless, errors }))
