import DiffusionCore

/// The state of a run between two steps.
struct Walk {
  let policy: MemoryPolicy
  /// Index of the highest level that runs.
  let firstLevel: Int
  private let bundle: BundleFolder
  private let request: PictureRequest
  private let scales: [Double]
  private var sampler: Sampler
  private var noise: NoiseStream
  private let constraint: Constraint?
  private(set) var states: [Tensor]

  /// Starts a new run.
  init(_ bundle: BundleFolder, _ request: PictureRequest, _ policy: MemoryPolicy) throws {
    try self.init(bundle, request, policy, states: nil)
  }

  /// Continues from a snapshot. Throws a ``MatryoshkaError`` if it belongs to another bundle.
  init(_ bundle: BundleFolder, _ snapshot: Snapshot, _ policy: MemoryPolicy) throws {
    try self.init(bundle, snapshot.request, policy, states: snapshot.states)
    let shapes = snapshot.states.map(\.shape)
    let draws = snapshot.request.sampler.drawsNoise ? 1 + snapshot.stepsDone : 1
    guard snapshot.bundleDigest == bundle.manifest.digest,
      shapes == sides.map({ [1, 3, $0, $0] }), (0..<sampler.total).contains(snapshot.stepsDone),
      snapshot.draws == draws, snapshot.history?.cleanEstimates.map(\.shape) ?? shapes == shapes,
      (snapshot.history != nil) == (request.sampler.kind == .dpmpp && snapshot.stepsDone > 0)
    else {
      throw MatryoshkaError.invalidArgument(
        name: "snapshot", reason: "belongs to another bundle or was altered")
    }
    sampler.stepsDone = snapshot.stepsDone
    sampler.history = snapshot.history
    noise.skip(to: snapshot.draws)
  }

  private init(
    _ bundle: BundleFolder, _ request: PictureRequest, _ policy: MemoryPolicy, states: [Tensor]?
  ) throws {
    let manifest = bundle.manifest
    try manifest.check(request)
    firstLevel = try Walk.firstLevel(manifest, request.stopAt)
    let levels = manifest.levels[firstLevel...]
    (self.bundle, self.request, self.policy) = (bundle, request, policy)
    scales = levels.map(\.imageScale)
    let sides = levels.map(\.side)
    let given = try GivenPicture(request, sides: sides, signals: scales)
    guard given == nil || !manifest.makesClips(upTo: request.stopAt) else {
      throw MatryoshkaError.invalidArgument(
        name: "image", reason: "belongs to models of pictures, and this one makes clips")
    }
    let schedule = try bundle.schedule.dropping(firstLevel)
    let starts = manifest.student?.starts ?? []
    let begin =
      if starts.isEmpty {
        given?.begin(steps: request.sampler.steps ?? schedule.numSteps) ?? 0
      } else {
        try given?.begin(starts: starts, table: schedule.numSteps) ?? 0
      }
    sampler = try Sampler(
      schedule: schedule, settings: request.sampler, prediction: manifest.prediction,
      threshold: manifest.threshold, imageScales: scales, starts: starts, begin: begin)
    noise = NoiseStream(seed: request.seed, sides: sides)
    guard let given else {
      constraint = nil
      if let states {
        self.states = states
      } else {
        self.states = try noise.draw()
      }
      return
    }
    var own = noise  // a snapshot knows how far the stream was read
    let first = try own.draw()
    constraint = given.constraint(noise: first)
    if let states {
      self.states = states
    } else {
      noise = own
      self.states = try given.states(noise: first, alphaBars: sampler.alphaBars)
      constraint?.replace(&self.states, alphaBars: sampler.alphaBars)
    }
  }

  private static func firstLevel(_ manifest: Manifest, _ side: Int?) throws -> Int {
    guard let side else { return 0 }
    guard let level = manifest.levels.firstIndex(where: { $0.side == side }) else {
      throw MatryoshkaError.invalidArgument(
        name: "stopAt", reason: "this model has sides \(manifest.levels.map(\.side)), got \(side)")
    }
    let stops = manifest.layout == .multifunction || manifest.levels[level].features != nil
    guard level == 0 || stops else {
      throw MatryoshkaError.invalidArgument(
        name: "stopAt", reason: "a bundle of layout \(manifest.layout) always runs all levels")
    }
    return level
  }

  private var sides: [Int] { bundle.sides[firstLevel...].map { $0 } }
  var stepsDone: Int { sampler.stepsDone }
  var total: Int { sampler.total }
  var isFinished: Bool { sampler.isFinished }
  /// The time that the network receives.
  var time: Int { sampler.index - 1 }

  /// The target of a student's next jump; nil for other models.
  var jump: BundleFolder.Jump? {
    guard request.sampler.kind == .student else { return nil }
    return BundleFolder.Jump(target: sampler.nextIndex, weight: request.sampler.guidanceScale)
  }

  /// The prompt, the negative prompt if guidance needs one, and the guidance weight.
  var captions: Chain.Captions {
    let scale = request.sampler.guidanceScale
    let guided = scale != 1 && bundle.manifest.guidance == .cfg
    return Chain.Captions(
      prompt: request.prompt, negative: guided ? request.negativePrompt : nil, scale: scale)
  }

  var snapshot: Snapshot {
    Snapshot(
      bundleDigest: bundle.manifest.digest, request: request, stepsDone: stepsDone, states: states,
      draws: noise.draws, history: sampler.history)
  }

  /// Takes one step with the given predictions and returns the clean estimates. It consumes the
  /// predictions, so that they are turned into estimates in place.
  mutating func advance(_ predictions: consuming [Tensor]) throws -> [Tensor] {
    let draw = request.sampler.drawsNoise ? try noise.draw() : nil
    let estimates = try sampler.step(
      &states, prediction: predictions, noise: draw, constraint: constraint)
    if !isFinished { constraint?.replace(&states, alphaBars: sampler.alphaBars) }
    return estimates
  }

  func pictures(_ images: [Tensor], of isWanted: (Int) -> Bool) throws -> [Picture] {
    try zip(images, scales).compactMap { image, scale in
      isWanted(image.shape[3]) ? try Picture(image, scale: scale) : nil
    }
  }

  /// The frames of pictures of levels; none unless the run makes a clip.
  func clips(_ pictures: [Picture]) throws -> [Clip] {
    let manifest = bundle.manifest
    guard let video = manifest.video, manifest.makesClips(upTo: request.stopAt) else { return [] }
    return try pictures.map { picture in
      let level = manifest.levels.firstIndex { $0.side == picture.width }
      return try Clip(canvas: picture, frames: level.map { video.frames[$0] } ?? 1, fps: video.fps)
    }
  }

  func finished() throws -> Finished {
    var values = try zip(states, scales).map { state, scale in
      try Tensor(
        shape: state.shape, values: state.values.map { min(max($0 * Float(scale), -1), 1) })
    }
    constraint?.finish(&values)
    let pictures = try values.map { try Picture($0, scale: 1) }
    return Finished(pictures: pictures, clips: try clips(pictures), values: values)
  }
}
