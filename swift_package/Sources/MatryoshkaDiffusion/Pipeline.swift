import DiffusionCore
import Foundation

/// Makes pictures or clips from prompts with one bundle, one at a time.
///
/// ```swift
/// let pipeline = Pipeline(bundle: bundle, runtime: runtime)
/// let sampler = SamplerSettings(proposedBy: bundle.manifest)
/// let request = PictureRequest(prompt: "red heart", sampler: sampler)
/// for try await step in pipeline.generate(request) {
///   if let finished = step.finished { show(finished.picture) }
/// }
/// ```
public actor Pipeline {
  /// The bundle that the pipeline runs.
  public nonisolated let bundle: BundleFolder
  private let packages: LoadedPackages
  private let texts: TextMemory
  private let options: Options
  private let queue = RunQueue()

  /// The settings of a pipeline.
  public struct Options: Sendable {
    /// Which packages stay loaded.
    public var memory: MemoryPolicy = .automatic
    /// Text features, for bundles without a text encoder or to avoid running it.
    public var features: EmbeddingCache?
    /// Checks every prompt, and every negative prompt that is not empty.
    public var promptFilter: (any PromptFilter)?
    /// Checks every picture.
    public var imageFilter: (any ImageFilter)?
    /// Bytes that may be allocated; nil if unknown.
    public var availableMemory: @Sendable () -> Int? = MemoryPolicy.availableMemory

    /// Creates the default settings.
    public init() {}
  }

  /// - Parameter runtime: a runtime of the same bundle, for this pipeline alone. A runtime of another
  ///   bundle is refused when it is first needed.
  public init(bundle: BundleFolder, runtime: any PackageRuntime, options: Options = Options()) {
    (self.bundle, self.options) = (bundle, options)
    packages = LoadedPackages(runtime, of: bundle.manifest)
    texts = TextMemory(bundle)
  }

  /// Makes a picture. Leaving the loop, or cancelling the task that reads the steps, ends the run.
  ///
  /// A newer step replaces a step that nobody has read. The last step carries the result and is never
  /// dropped. Throws ``MatryoshkaError``; it is `busy` while another picture is being made that nothing
  /// has ended.
  ///
  /// When a run fails or is interrupted, all packages are released before the steps end. When it is
  /// cancelled or refused, the policy `resident` keeps them for the next picture.
  ///
  /// A bundle of clips makes its key frame if `stopAt` says so; other requests are refused with
  /// ``MatryoshkaError/wrongKind(reason:)``.
  public nonisolated func generate(
    _ request: PictureRequest, previews: Previews = .none
  ) -> Steps {
    steps(.picture(request), previews)
  }

  /// Makes a clip, in the same way as ``generate(_:previews:)`` makes a picture. ``Finished/clips`` holds it,
  /// and ``Step/clips`` what it looks like so far. A bundle of pictures refuses with
  /// ``MatryoshkaError/wrongKind(reason:)``.
  public nonisolated func clip(_ request: ClipRequest, previews: Previews = .none) -> Steps {
    steps(.clip(request), previews)
  }

  /// Makes what the bundle makes: a clip or a picture.
  package nonisolated func make(_ request: PictureRequest, previews: Previews = .none) -> Steps {
    let isClip = bundle.manifest.makesClips(upTo: request.stopAt)
    return isClip ? clip(request, previews: previews) : generate(request, previews: previews)
  }

  /// Continues from a snapshot. Gives the same picture or clip as an uninterrupted run.
  public nonisolated func resume(
    _ snapshot: Snapshot, previews: Previews = .none
  ) -> Steps {
    steps(.later(snapshot), previews)
  }

  /// Stops every run that was asked for before this call, after the package at work: the run that
  /// works, one that waits for it, and a preparation. Steps then end with
  /// ``MatryoshkaError/interrupted(_:reason:)`` and a snapshot, ``prepare()`` with a
  /// `CancellationError`. Does nothing if there is no run.
  ///
  /// Call it when the app goes to the background, where the system ends GPU work, and wait with
  /// ``idle()`` for the package at work.
  public nonisolated func interrupt(reason: String = "on request") { queue.interrupt(reason) }

  /// Loads the packages that the memory policy keeps, so that the first picture starts at once. A
  /// picture that is asked for meanwhile waits for it.
  public func prepare() async throws {
    let run = Run(.upkeep)
    queue.add(run)
    defer { queue.remove(run) }
    try await queue.turn(of: run)
    try checkRuntime()
    let policy = try resolvedPolicy()
    guard policy == .resident else { return }
    do {
      for package in Manifest.Phase.allCases.flatMap({ bundle.manifest.packages(of: $0) }) {
        try run.check()
        try await packages.load(package)
      }
    } catch {
      await releaseUnlessKept(policy, after: error)
      throw error is Stop ? CancellationError() : error
    }
  }

  /// Releases everything after the runs that were asked for before.
  public func release() async {
    let run = Run(.upkeep)
    queue.add(run)
    defer { queue.remove(run) }
    await queue.turnAfterAll(of: run)
    texts.forget()
    await packages.release()
  }

  /// Lets the next picture encode its texts anew, as the first picture of a prompt does.
  package nonisolated func forgetTexts() { texts.remember([:]) }

  /// Returns when no run is active.
  public func idle() async { await queue.idle() }

  private enum Start: Sendable {
    case picture(PictureRequest)
    case clip(ClipRequest)
    case later(Snapshot)
  }

  private nonisolated func steps(_ start: Start, _ previews: Previews) -> Steps {
    let run = Run(.picture)
    queue.add(run)
    let stream = AsyncThrowingStream<Step, any Error>(bufferingPolicy: .bufferingNewest(1)) { continuation in
      continuation.onTermination = { _ in run.cancel() }
      run.follow(
        Task {
          var failure: (any Error)?
          do {
            try await self.perform(run, start, previews) { continuation.yield($0) }
          } catch {
            failure = error
          }
          // Before the steps end, so that their reader may ask for the next picture at once.
          queue.remove(run)
          continuation.finish(throwing: failure)
        })
    }
    return Steps(stream, run)
  }

  private func perform(
    _ run: Run, _ start: Start, _ previews: Previews, _ yield: @Sendable (Step) -> Void
  ) async throws {
    try await queue.turn(of: run)
    try Task.checkCancellation()
    try checkRuntime()
    var policy: MemoryPolicy?
    do {
      let resolved = try resolvedPolicy()
      policy = resolved
      var walk = try await begin(start, resolved)
      try await finish(&walk, run, previews, yield)
      if resolved != .resident { await packages.release() }
    } catch {
      await releaseUnlessKept(policy, after: error)
      throw error
    }
  }

  /// Another bundle's packages may have the same names and shapes, and would make some picture.
  private func checkRuntime() throws {
    guard let found = packages.bundleDigest, found != bundle.manifest.digest else { return }
    throw MatryoshkaError.invalidArgument(
      name: "runtime",
      reason: "runs the bundle \(found.prefix(12)), but this pipeline has \(bundle.manifest.digest.prefix(12))")
  }

  /// Keeps what the policy keeps between pictures, unless the packages themselves may be at fault, or
  /// the app goes to the background, where memory is short.
  private func releaseUnlessKept(_ policy: MemoryPolicy?, after error: any Error) async {
    let isHarmless = error is CancellationError || (error as? MatryoshkaError)?.isARefusal == true
    if policy == .resident && isHarmless { return }
    await packages.release()
  }

  private func resolvedPolicy() throws -> MemoryPolicy {
    // What our own packages take already is not missing for them.
    let available = options.availableMemory().map { $0 + packages.bytes }
    return try options.memory.resolved(bundle.manifest.peakMemory, available: available)
  }

  private func begin(_ start: Start, _ policy: MemoryPolicy) async throws -> Walk {
    switch start {
    case .picture(let request):
      try bundle.manifest.checkKind(of: request, isClip: false)
      try await check(request)
      return try Walk(bundle, request, policy)
    case .clip(let request):
      try bundle.manifest.checkKind(of: request, isClip: true)
      try await check(request)
      return try Walk(bundle, request, policy)
    case .later(let snapshot):
      try await check(snapshot.request)
      return try Walk(bundle, snapshot, policy)
    }
  }

  private func check(_ request: PictureRequest) async throws {
    guard let filter = options.promptFilter else { return }
    for prompt in [request.prompt, request.negativePrompt] where !prompt.isEmpty {
      if let reason = await filter.refusal(of: prompt) {
        throw MatryoshkaError.promptRefused(reason: reason)
      }
    }
  }

  /// Runs the text, then all steps. A failure after the first step becomes an interruption.
  private func finish(
    _ walk: inout Walk, _ run: Run, _ previews: Previews, _ yield: @Sendable (Step) -> Void
  ) async throws {
    let chain = Chain(
      bundle: bundle, runtime: packages, texts: texts, policy: walk.policy, pause: run.check)
    do {
      try run.check()
      let prompts = try await chain.condition(walk.captions, options.features)
      let remarks = texts.remarks(on: walk.captions, bundle.manifest.text)
      while !walk.isFinished {
        let step = try await advance(&walk, chain, prompts, previews, remarks)
        if step.finished != nil { run.finish() }
        yield(step)
      }
    } catch let stop as Stop {
      throw MatryoshkaError.interrupted(walk.snapshot, reason: stop.reason)
    } catch where error.isOfTheRuntime {
      try Task.checkCancellation()
      // In the background a package fails because of the very event that the interruption announces.
      guard let reason = run.interruption ?? (walk.stepsDone > 0 ? error.cause : nil) else { throw error }
      throw MatryoshkaError.interrupted(walk.snapshot, reason: reason)
    }
  }

  private func advance(
    _ walk: inout Walk, _ chain: Chain, _ prompts: [Chain.Conditioning], _ previews: Previews,
    _ remarks: [String]
  ) async throws -> Step {
    let clock = ContinuousClock()
    let start = clock.now
    let clean = try walk.advance(
      await chain.predict(
        walk.states, time: walk.time, jump: walk.jump, firstLevel: walk.firstLevel, prompts))
    let shown = try walk.pictures(clean) { previews.include($0) }
    let clips = try walk.clips(shown)
    let finished = walk.isFinished ? try walk.finished() : nil
    // A filter sees frames as the app shows them, not all of them in one picture.
    let seen = clips.isEmpty ? shown : clips.flatMap(\.frames)
    try await check(seen + (finished.map { $0.clip?.frames ?? [$0.picture] } ?? []))
    let taken = (clock.now - start).components
    return Step(
      index: walk.stepsDone - 1, total: walk.total, previews: shown, clips: clips, finished: finished,
      seconds: Double(taken.seconds) + Double(taken.attoseconds) * 1e-18,
      thermalState: .current, remarks: remarks)
  }

  private func check(_ pictures: [Picture]) async throws {
    guard let filter = options.imageFilter else { return }
    for picture in pictures {
      if let reason = await filter.refusal(of: picture) {
        throw MatryoshkaError.pictureRefused(reason: reason)
      }
    }
  }
}

extension Error {
  /// Whether a later attempt may succeed. A runtime of the app's own may throw anything.
  fileprivate var isOfTheRuntime: Bool {
    switch self as any Error {
    case MatryoshkaError.packageFailed, MatryoshkaError.serverFailed: true
    case is MatryoshkaError, is CancellationError: false
    default: true
    }
  }
}

extension MatryoshkaError {
  /// Whether a request was refused while nothing is wrong with the packages.
  fileprivate var isARefusal: Bool {
    switch self {
    case .promptRefused, .pictureRefused, .invalidArgument, .missingFeatures, .wrongKind: true
    default: false
    }
  }
}
